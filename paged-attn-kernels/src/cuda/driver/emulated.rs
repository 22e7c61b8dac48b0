//! A device made of the PTX emulator: every launch is done when the call returns.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Address, Driver, Handle, Kernel, LaunchShape};
use crate::cuda::{CudaError, DeviceProperties};
use crate::emulator::{self, LaunchConfig, Memory, Module};

/// CTAs that kernels with a fixed grid are launched with, a multiple of this: few, so that each
/// takes several pieces of work.
const NUM_SMS: u32 = 3;

/// Memory of an emulated device, and its code.
#[derive(Debug)]
pub(crate) struct Emulated {
    properties: DeviceProperties,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    memory: Memory,
    modules: HashMap<&'static str, Module>,
    /// Launches of the streams that are being captured.
    capturing: HashMap<Handle, Vec<Launch>>,
    graphs: HashMap<Handle, Vec<Launch>>,
    events: HashMap<Handle, Option<Instant>>,
    next_handle: Handle,
}

#[derive(Debug, Clone)]
struct Launch {
    kernel: Kernel,
    shape: LaunchShape,
    params: Vec<u8>,
}

impl Emulated {
    pub(crate) fn new() -> Self {
        Self {
            properties: DeviceProperties {
                name: "PTX emulator".to_owned(),
                capability: (8, 0),
                num_sms: NUM_SMS,
                shared_bytes: 163 * 1024,
                memory_bytes: usize::MAX,
                emulated: true,
            },
            state: Mutex::new(State {
                memory: Memory::new(),
                modules: HashMap::new(),
                capturing: HashMap::new(),
                graphs: HashMap::new(),
                events: HashMap::new(),
                next_handle: 1,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fault(reason: impl ToString) -> CudaError {
    CudaError::Fault {
        reason: reason.to_string(),
    }
}

impl State {
    fn handle(&mut self) -> Handle {
        self.next_handle += 1;
        self.next_handle
    }

    fn refuse_capture(&self, stream: Handle, call: &'static str) -> Result<(), CudaError> {
        match self.capturing.contains_key(&stream) {
            true => Err(CudaError::Capturing { call }),
            false => Ok(()),
        }
    }

    fn run(&mut self, launch: &Launch) -> Result<(), CudaError> {
        let code = launch.kernel.code;
        if !self.modules.contains_key(code.name) {
            let module = Module::parse(code.ptx).map_err(fault)?;
            self.modules.insert(code.name, module);
        }
        let entry = self.modules[code.name]
            .entry(launch.kernel.entry)
            .ok_or_else(|| CudaError::NoKernel {
                name: launch.kernel.entry.to_owned(),
            })?;
        if entry.param_bytes() != launch.params.len() {
            return Err(fault(format!(
                "{} takes {} bytes of parameters, not {}",
                entry.name(),
                entry.param_bytes(),
                launch.params.len()
            )));
        }
        let config = LaunchConfig {
            grid: launch.shape.grid,
            block: [launch.shape.threads, 1, 1],
            dynamic_shared_bytes: launch.shape.shared_bytes,
        };
        emulator::launch(entry, config, &launch.params, &mut self.memory)
            .map(drop)
            .map_err(fault)
    }
}

impl Driver for Emulated {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<Address, CudaError> {
        Ok(self.state().memory.alloc(bytes))
    }

    fn free(&self, address: Address) {
        self.state().memory.free(address);
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<Address, CudaError> {
        self.alloc(bytes)
    }

    fn free_pinned(&self, address: Address) {
        self.free(address);
    }

    fn new_stream(&self) -> Result<Handle, CudaError> {
        Ok(self.state().handle())
    }

    fn drop_stream(&self, stream: Handle) {
        self.state().capturing.remove(&stream);
    }

    fn synchronize(&self, stream: Handle) -> Result<(), CudaError> {
        self.state().refuse_capture(stream, "a synchronisation")
    }

    fn copy_in(&self, stream: Handle, to: Address, data: &[u8]) -> Result<(), CudaError> {
        let mut state = self.state();
        state.refuse_capture(stream, "a copy to the device")?;
        state.memory.write(to, data).map_err(fault)
    }

    fn copy_out(&self, stream: Handle, from: Address, data: &mut [u8]) -> Result<(), CudaError> {
        let state = self.state();
        state.refuse_capture(stream, "a copy to the host")?;
        state.memory.read(from, data).map_err(fault)
    }

    fn copy(
        &self,
        stream: Handle,
        from: Address,
        to: Address,
        len: usize,
    ) -> Result<(), CudaError> {
        let mut state = self.state();
        state.refuse_capture(stream, "a copy between buffers")?;
        let mut data = vec![0; len];
        state.memory.read(from, &mut data).map_err(fault)?;
        state.memory.write(to, &data).map_err(fault)
    }

    fn fill(&self, stream: Handle, to: Address, byte: u8, len: usize) -> Result<(), CudaError> {
        self.copy_in(stream, to, &vec![byte; len])
    }

    fn launch(
        &self,
        stream: Handle,
        kernel: Kernel,
        shape: LaunchShape,
        params: &[u8],
    ) -> Result<(), CudaError> {
        let mut state = self.state();
        let launch = Launch {
            kernel,
            shape,
            params: params.to_vec(),
        };
        match state.capturing.get_mut(&stream) {
            Some(launches) => {
                launches.push(launch);
                Ok(())
            }
            None => state.run(&launch),
        }
    }

    fn begin_capture(&self, stream: Handle) -> Result<(), CudaError> {
        let mut state = self.state();
        state.refuse_capture(stream, "another capture")?;
        state.capturing.insert(stream, Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Handle) -> Result<Handle, CudaError> {
        let mut state = self.state();
        let Some(launches) = state.capturing.remove(&stream) else {
            return Err(fault("the end of a capture that was not begun"));
        };
        let graph = state.handle();
        state.graphs.insert(graph, launches);
        Ok(graph)
    }

    fn launch_graph(&self, _stream: Handle, graph: Handle) -> Result<(), CudaError> {
        let mut state = self.state();
        let launches = state.graphs.get(&graph).cloned().unwrap_or_default();
        launches.iter().try_for_each(|launch| state.run(launch))
    }

    fn drop_graph(&self, graph: Handle) {
        self.state().graphs.remove(&graph);
    }

    fn new_event(&self) -> Result<Handle, CudaError> {
        let mut state = self.state();
        let event = state.handle();
        state.events.insert(event, None);
        Ok(event)
    }

    fn drop_event(&self, event: Handle) {
        self.state().events.remove(&event);
    }

    fn record(&self, _stream: Handle, event: Handle) -> Result<(), CudaError> {
        self.state().events.insert(event, Some(Instant::now()));
        Ok(())
    }

    fn wait(&self, _stream: Handle, _event: Handle) -> Result<(), CudaError> {
        // What was recorded is done.
        Ok(())
    }

    fn elapsed_ms(&self, start: Handle, end: Handle) -> Result<f32, CudaError> {
        let state = self.state();
        let at = |event| state.events.get(&event).copied().flatten();
        match (at(start), at(end)) {
            (Some(start), Some(end)) => Ok((end - start).as_secs_f32() * 1e3),
            _ => Err(fault("an event was not recorded")),
        }
    }
}
