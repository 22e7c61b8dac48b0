//! Order: streams, events between them, and captured graphs.

use bytemuck::Pod;

use super::driver::{Handle, Kernel, LaunchShape};
use super::{CudaError, Device};

/// A queue of launches and copies that run one after the other.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    handle: Handle,
}

impl Stream {
    pub(super) fn new(device: &Device) -> Result<Self, CudaError> {
        Ok(Self {
            device: device.clone(),
            handle: device.driver().new_stream()?,
        })
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits for all that was queued, and reports what failed in it.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for kernels that failed earlier.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.device.driver().synchronize(self.handle)
    }

    /// Marks the end of what was queued so far.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn record(&self) -> Result<Event, CudaError> {
        let event = Event {
            handle: self.device.driver().new_event()?,
            device: self.device.clone(),
        };
        self.device.driver().record(self.handle, event.handle)?;
        Ok(event)
    }

    /// Makes what is queued from now on wait for `event`, of this or another stream.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Driver`].
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        self.device.check_same("event", &event.device)?;
        self.device.driver().wait(self.handle, event.handle)
    }

    /// Captures what `launches` queues, without running it.
    ///
    /// A graph holds the addresses and shapes of its launches; what lies at the addresses is read
    /// when it runs. Buffers that it names must outlive it and must not grow.
    ///
    /// # Errors
    /// Those of `launches`, which must not wait or copy; [`CudaError::Driver`].
    pub fn capture(
        &self,
        launches: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        let driver = self.device.driver();
        driver.begin_capture(self.handle)?;
        let launched = launches();
        // Ended in any case: the stream would stay unusable.
        let graph = driver.end_capture(self.handle).map(|handle| Graph {
            device: self.device.clone(),
            handle,
        });
        launched?;
        graph
    }

    /// Queues a graph.
    ///
    /// # Safety
    /// Every buffer that the captured launches name must still exist, at the size it had.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Driver`].
    pub unsafe fn launch_graph(&self, graph: &Graph) -> Result<(), CudaError> {
        self.device.check_same("graph", &graph.device)?;
        self.device.driver().launch_graph(self.handle, graph.handle)
    }

    /// How long what `launches` queues takes: captured once, then run `num_runs` times after one
    /// that is not counted. Milliseconds of each run; without the time of launching.
    ///
    /// # Errors
    /// As [`capture`](Self::capture).
    pub fn time_captured(
        &self,
        num_runs: usize,
        launches: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Vec<f32>, CudaError> {
        let graph = self.capture(launches)?;
        let run = || -> Result<f32, CudaError> {
            let start = self.record()?;
            // SAFETY: what `launches` borrows outlives this call, and memory can neither be freed
            // nor allocated while a stream is captured.
            unsafe { self.launch_graph(&graph) }?;
            start.elapsed_ms(&self.record()?)
        };
        run()?;
        (0..num_runs).map(|_| run()).collect()
    }

    /// Queues a kernel. A grid with a zero in it is nothing to do.
    pub(super) fn launch<P: Pod>(
        &self,
        kernel: Kernel,
        shape: LaunchShape,
        params: &P,
    ) -> Result<(), CudaError> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let driver = self.device.driver();
        driver.launch(self.handle, kernel, shape, bytemuck::bytes_of(params))
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.device.driver().drop_stream(self.handle);
    }
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event {
    device: Device,
    handle: Handle,
}

impl Event {
    /// Milliseconds from `self` to `later`; waits for both.
    ///
    /// # Errors
    /// [`CudaError::OtherDevice`], [`CudaError::Driver`].
    pub fn elapsed_ms(&self, later: &Event) -> Result<f32, CudaError> {
        self.device.check_same("event", &later.device)?;
        self.device.driver().elapsed_ms(self.handle, later.handle)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.device.driver().drop_event(self.handle);
    }
}

/// Launches that were captured, to run again at the cost of one.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    handle: Handle,
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.device.driver().drop_graph(self.handle);
    }
}
