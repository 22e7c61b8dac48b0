//! NVIDIA's driver, through cudarc, found when the program runs.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::{Address, Driver, Handle, Kernel, LaunchShape};
use crate::cuda::{CudaError, DeviceProperties};

/// PTX ISA 9.0 is what the kernels are compiled to.
const MIN_DRIVER: i32 = 13_000;

/// Shared memory that a kernel may have without asking.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// A device's primary context, and the code loaded into it.
#[derive(Debug)]
pub(crate) struct Real {
    device: sys::CUdevice,
    context: sys::CUcontext,
    properties: DeviceProperties,
    loaded: Mutex<Loaded>,
}

// SAFETY: a context may be used by any thread that makes it current, as `enter` does before each
// call; the driver's functions are thread-safe. The other fields are plain data and a mutex.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<(&'static str, &'static str), Function>,
}

#[derive(Debug, Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    /// Dynamic shared memory it may have.
    shared_bytes: u32,
}

/// Names the call in the driver's error. The code's name is its Rust name: asking the driver for it
/// could call a symbol that an old one lacks.
fn failed(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver {
        call,
        code: format!("{:?}", error.0),
    }
}

/// Whether there is a driver that can be called at all: cudarc panics where there is none.
fn probe() -> Result<(), CudaError> {
    let missing = |reason: String| Err(CudaError::NoDevice { reason });
    // SAFETY: loads the library and nothing else.
    if !unsafe { sys::is_culib_present() } {
        return missing(
            "the driver's library (libcuda.so.1 or nvcuda.dll) is not installed".into(),
        );
    }
    if let Err(error) = result::init() {
        return missing(format!("cuInit: {:?}", error.0));
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    if let Err(error) = code.result() {
        return missing(format!("cuDriverGetVersion: {:?}", error.0));
    }
    if version < MIN_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return missing(format!(
            "the driver is for CUDA {major}.{minor}, and 13.0 or later is needed"
        ));
    }
    Ok(())
}

impl Real {
    /// Devices that the driver shows.
    pub(crate) fn count() -> Result<usize, CudaError> {
        probe()?;
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The `ordinal`-th device.
    pub(crate) fn open(ordinal: usize) -> Result<Self, CudaError> {
        let count = Self::count()?;
        let index = i32::try_from(ordinal)
            .ok()
            .filter(|_| ordinal < count)
            .ok_or_else(|| CudaError::NoDevice {
                reason: format!("device {ordinal} of {count}"),
            })?;
        let device = result::device::get(index).map_err(failed("cuDeviceGet"))?;
        let properties = properties(device)?;
        if properties.capability < (8, 0) {
            return Err(CudaError::Capability {
                name: properties.name,
                capability: properties.capability,
            });
        }
        // SAFETY: released once, when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(failed("cuDevicePrimaryCtxRetain"))?;
        Ok(Self {
            device,
            context,
            properties,
            loaded: Mutex::default(),
        })
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until this is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    fn function(&self, kernel: Kernel, shared_bytes: u32) -> Result<sys::CUfunction, CudaError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kernel.code.name, kernel.entry);
        let mut function = match loaded.functions.get(&key) {
            Some(&function) if shared_bytes <= function.shared_bytes => return Ok(function.raw),
            Some(&function) => function,
            None => self.load(&mut loaded, kernel)?,
        };
        if shared_bytes > function.shared_bytes {
            // SAFETY: the function belongs to a module that stays loaded as long as `self`.
            unsafe {
                result::function::set_function_attribute(
                    function.raw,
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared_bytes as i32,
                )
            }
            .map_err(failed("cuFuncSetAttribute"))?;
            function.shared_bytes = shared_bytes;
        }
        loaded.functions.insert(key, function);
        Ok(function.raw)
    }

    fn load(&self, loaded: &mut Loaded, kernel: Kernel) -> Result<Function, CudaError> {
        let name = kernel.code.name;
        let module = match loaded.modules.get(name) {
            Some(&module) => module,
            None => {
                let module = self.load_module(kernel)?;
                loaded.modules.insert(name, module);
                module
            }
        };
        let entry = CString::new(kernel.entry).map_err(|_| CudaError::NoKernel {
            name: kernel.entry.to_owned(),
        })?;
        // SAFETY: the module stays loaded as long as the context.
        let raw = unsafe { result::module::get_function(module, entry) }
            .map_err(failed("cuModuleGetFunction"))?;
        Ok(Function {
            raw,
            shared_bytes: DEFAULT_SHARED_BYTES,
        })
    }

    fn load_module(&self, kernel: Kernel) -> Result<sys::CUmodule, CudaError> {
        let code = kernel.code;
        // Aligned as the driver likes an ELF image, and PTX as a C string.
        let mut image: Vec<u64> = match self.properties.capability {
            (9, 0) => words(code.sm_90),
            _ => words(code.ptx.as_bytes()),
        };
        image.push(0);
        // SAFETY: `image` is a whole cubin, or PTX that ends in a zero, and outlives the call.
        unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(failed("cuModuleLoadData"))
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect()
}

fn properties(device: sys::CUdevice) -> Result<DeviceProperties, CudaError> {
    use sys::CUdevice_attribute as A;
    let get = |attribute| -> Result<u32, CudaError> {
        // SAFETY: `device` was given by `cuDeviceGet`.
        let value = unsafe { result::device::get_attribute(device, attribute) }
            .map_err(failed("cuDeviceGetAttribute"))?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    Ok(DeviceProperties {
        name: result::device::get_name(device).map_err(failed("cuDeviceGetName"))?,
        capability: (
            get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }
            .map_err(failed("cuDeviceTotalMem"))?,
        emulated: false,
    })
}

impl Drop for Real {
    fn drop(&mut self) {
        // SAFETY: retained once, in `open`; nothing can be done about an error here.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Driver for Real {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<Address, CudaError> {
        self.enter()?;
        // SAFETY: the memory is only given out uninitialised to kernels and copies.
        unsafe { result::malloc_sync(bytes) }.map_err(failed("cuMemAlloc"))
    }

    fn free(&self, address: Address) {
        if self.enter().is_ok() {
            // SAFETY: `alloc` gave it, and it is freed once. The driver waits for what uses it.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<Address, CudaError> {
        self.enter()?;
        // Not write-combined: the host reads it too.
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: freed by `free_pinned`.
        let host =
            unsafe { result::malloc_host(bytes, flags) }.map_err(failed("cuMemHostAlloc"))?;
        // With unified addressing, which every 64-bit system has, kernels use the same address.
        Ok(host as Address)
    }

    fn free_pinned(&self, address: Address) {
        if self.enter().is_ok() {
            let _ = result::ctx::synchronize();
            // SAFETY: `alloc_pinned` gave it, it is freed once, and no kernel runs.
            let _ = unsafe { result::free_host(address as *mut c_void) };
        }
    }

    fn new_stream(&self) -> Result<Handle, CudaError> {
        self.enter()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("cuStreamCreate"))?;
        Ok(stream as Handle)
    }

    fn drop_stream(&self, stream: Handle) {
        if self.enter().is_ok() {
            // SAFETY: `new_stream` gave it, and it is dropped once.
            let _ = unsafe { result::stream::destroy(stream as sys::CUstream) };
        }
    }

    fn synchronize(&self, stream: Handle) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: a stream of this driver.
        unsafe { result::stream::synchronize(stream as sys::CUstream) }
            .map_err(failed("cuStreamSynchronize"))
    }

    fn copy_in(&self, stream: Handle, to: Address, data: &[u8]) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's buffer is as long as `data`. Pageable memory has been read when the
        // call returns; pinned memory is not given to this function.
        unsafe { result::memcpy_htod_async(to, data, stream as sys::CUstream) }
            .map_err(failed("cuMemcpyHtoDAsync"))
    }

    fn copy_out(&self, stream: Handle, from: Address, data: &mut [u8]) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's buffer is as long as `data`, which outlives the copy: it is waited for.
        unsafe { result::memcpy_dtoh_async(data, from, stream as sys::CUstream) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.synchronize(stream)
    }

    fn copy(
        &self,
        stream: Handle,
        from: Address,
        to: Address,
        len: usize,
    ) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: both buffers have `len` bytes.
        unsafe { result::memcpy_dtod_async(to, from, len, stream as sys::CUstream) }
            .map_err(failed("cuMemcpyDtoDAsync"))
    }

    fn fill(&self, stream: Handle, to: Address, byte: u8, len: usize) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: the caller's buffer has `len` bytes.
        unsafe { result::memset_d8_async(to, byte, len, stream as sys::CUstream) }
            .map_err(failed("cuMemsetD8Async"))
    }

    fn launch(
        &self,
        stream: Handle,
        kernel: Kernel,
        shape: LaunchShape,
        params: &[u8],
    ) -> Result<(), CudaError> {
        self.enter()?;
        let function = self.function(kernel, shape.shared_bytes)?;
        let [x, y, z] = shape.grid;
        // SAFETY: the kernel takes one parameter, whose bytes these are (`params.rs` has the struct);
        // the driver copies them before it returns. The launcher checked every pointer's extent.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (shape.threads, 1, 1),
                shape.shared_bytes,
                stream as sys::CUstream,
                &mut [params.as_ptr().cast_mut().cast()],
            )
        }
        .map_err(failed("cuLaunchKernel"))
    }

    fn begin_capture(&self, stream: Handle) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: a stream of this driver.
        unsafe {
            result::stream::begin_capture(
                stream as sys::CUstream,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        }
        .map_err(failed("cuStreamBeginCapture"))
    }

    fn end_capture(&self, stream: Handle) -> Result<Handle, CudaError> {
        self.enter()?;
        // SAFETY: a stream of this driver. The graph is not needed once it is instantiated.
        unsafe {
            let graph = result::stream::end_capture(stream as sys::CUstream)
                .map_err(failed("cuStreamEndCapture"))?;
            let mut executable = std::ptr::null_mut();
            let instantiated = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0)
                .result()
                .map_err(failed("cuGraphInstantiateWithFlags"));
            let _ = result::graph::destroy(graph);
            instantiated.map(|()| executable as Handle)
        }
    }

    fn launch_graph(&self, stream: Handle, graph: Handle) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: a graph and a stream of this driver.
        unsafe { result::graph::launch(graph as sys::CUgraphExec, stream as sys::CUstream) }
            .map_err(failed("cuGraphLaunch"))
    }

    fn drop_graph(&self, graph: Handle) {
        if self.enter().is_ok() {
            // SAFETY: `end_capture` gave it, and it is dropped once.
            let _ = unsafe { result::graph::exec_destroy(graph as sys::CUgraphExec) };
        }
    }

    fn new_event(&self) -> Result<Handle, CudaError> {
        self.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map_err(failed("cuEventCreate"))?;
        Ok(event as Handle)
    }

    fn drop_event(&self, event: Handle) {
        if self.enter().is_ok() {
            // SAFETY: `new_event` gave it, and it is dropped once.
            let _ = unsafe { result::event::destroy(event as sys::CUevent) };
        }
    }

    fn record(&self, stream: Handle, event: Handle) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: an event and a stream of this driver.
        unsafe { result::event::record(event as sys::CUevent, stream as sys::CUstream) }
            .map_err(failed("cuEventRecord"))
    }

    fn wait(&self, stream: Handle, event: Handle) -> Result<(), CudaError> {
        self.enter()?;
        // SAFETY: an event and a stream of this driver.
        unsafe {
            result::stream::wait_event(
                stream as sys::CUstream,
                event as sys::CUevent,
                sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
            )
        }
        .map_err(failed("cuStreamWaitEvent"))
    }

    fn elapsed_ms(&self, start: Handle, end: Handle) -> Result<f32, CudaError> {
        self.enter()?;
        // SAFETY: events of this driver.
        unsafe {
            result::event::synchronize(end as sys::CUevent)
                .map_err(failed("cuEventSynchronize"))?;
            result::event::elapsed(start as sys::CUevent, end as sys::CUevent)
                .map_err(failed("cuEventElapsedTime"))
        }
    }
}
