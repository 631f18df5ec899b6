//! The entry points of the driver. Pointers are what its documentation asks for: valid, and as large as the call says.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::execute::Launch;
use crate::memory::Fault;
use crate::module::Function;
use crate::parse::parse;
use crate::streams::{Event, Host, Streams, Work};

pub(crate) type Status = c_uint;

pub(crate) const SUCCESS: Status = 0;
pub(crate) const INVALID_VALUE: Status = 1;
pub(crate) const OUT_OF_MEMORY: Status = 2;
const NOT_INITIALIZED: Status = 3;
const NO_DEVICE: Status = 100;
const INVALID_DEVICE: Status = 101;
const INVALID_CONTEXT: Status = 201;
const INVALID_PTX: Status = 218;
pub(crate) const INVALID_HANDLE: Status = 400;
const NOT_FOUND: Status = 500;
const NOT_READY: Status = 600;
const LAUNCH_FAILED: Status = 719;
const DEVICE_UNAVAILABLE: Status = 46;

/// Shared memory of a block: without asking, and at most.
const ALWAYS_SHARED: usize = 48 << 10;
const MOST_SHARED: c_int = 163 << 10;

/// Which call fails: the one that finds 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failures {
    pub(crate) alloc: Option<u64>,
    pinned: Option<u64>,
    launch: Option<u64>,
    /// Calls of cuBLAS.
    pub(crate) blas: Option<u64>,
    /// Products of matrices, which come out as no numbers.
    pub(crate) wrong: Option<u64>,
    /// Every call counts.
    lost: Option<u64>,
}

impl Failures {
    fn set(&mut self, text: &str) -> bool {
        let Some((kind, number)) = text.split_once(':') else {
            *self = Self::default();
            return text.is_empty();
        };
        let Ok(number) = number.parse() else {
            return false;
        };
        let place = match kind {
            "alloc" => &mut self.alloc,
            "pinned" => &mut self.pinned,
            "launch" => &mut self.launch,
            "blas" => &mut self.blas,
            "wrong" => &mut self.wrong,
            "lost" => &mut self.lost,
            _ => return false,
        };
        *place = Some(number);
        true
    }

    pub(crate) fn falls(place: &mut Option<u64>) -> bool {
        match place {
            Some(0) => {
                *place = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

pub(crate) struct Driver {
    initialised: bool,
    /// Contexts held on the device.
    retained: u64,
    pub(crate) streams: Streams,
    pub(crate) blas: BTreeMap<u64, crate::blas::Handle>,
    functions: BTreeMap<u64, Vec<Arc<Function>>>,
    /// Shared memory that kernels were given leave to ask for.
    shared: BTreeMap<String, usize>,
    pinned: BTreeMap<u64, (usize, std::alloc::Layout)>,
    next: u64,
    /// The error that every call gives, once a kernel went wrong or the device is lost.
    sticky: Status,
    fault: std::ffi::CString,
    pub(crate) failures: Failures,
}

/// The one context: its address is its handle.
static CONTEXT: u8 = 0;

thread_local! {
    static CURRENT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn new_streams() -> Streams {
    Streams::new(
        number("SPARSE_STANDIN_MEMORY", 256 << 20),
        number("SPARSE_STANDIN_SEED", 1),
    )
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| {
    let mut failures = Failures::default();
    if let Ok(text) = std::env::var("SPARSE_STANDIN_FAIL") {
        for part in text.split(',') {
            if !failures.set(part) {
                say(&format!("SPARSE_STANDIN_FAIL: '{part}' is not known"));
            }
        }
    }
    Mutex::new(Driver {
        initialised: false,
        retained: 0,
        streams: new_streams(),
        blas: BTreeMap::new(),
        functions: BTreeMap::new(),
        shared: BTreeMap::new(),
        pinned: BTreeMap::new(),
        next: 0x1000,
        sticky: SUCCESS,
        fault: std::ffi::CString::default(),
        failures,
    })
});

fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "stand-in: {line}");
}

impl Driver {
    pub(crate) fn handle(&mut self) -> u64 {
        self.next += 0x10;
        self.next
    }

    fn settle(&mut self, result: Result<(), Fault>) -> Status {
        match result {
            Ok(()) => SUCCESS,
            Err(fault) => {
                self.sticky = fault.code();
                say(&fault.text());
                self.fault = std::ffi::CString::new(fault.text()).unwrap_or_default();
                self.sticky
            }
        }
    }

    pub(crate) fn queue(&mut self, stream: u64, work: Work) -> Status {
        if !self.streams.queues.contains_key(&stream) {
            return INVALID_HANDLE;
        }
        let result = self.streams.queue(stream, work);
        self.settle(result)
    }

    fn wait(&mut self, done: impl Fn(&Streams) -> bool) -> Status {
        let result = self.streams.until(done);
        self.settle(result)
    }

    /// Whether host memory is pinned from here on for `size` bytes.
    fn is_pinned(&self, at: u64, size: usize) -> bool {
        self.pinned
            .range(..=at)
            .next_back()
            .is_some_and(|(start, (length, _))| at + size as u64 <= start + *length as u64)
    }

    fn function(&self, function: *const c_void) -> Option<Arc<Function>> {
        self.functions
            .values()
            .flatten()
            .find(|f| Arc::as_ptr(f).cast() == function)
            .cloned()
    }

    /// Shared memory that a kernel may have.
    fn shared_of(&self, name: &str) -> usize {
        self.shared
            .get(name)
            .copied()
            .unwrap_or(0)
            .max(ALWAYS_SHARED)
    }

    /// Forgets everything, as the last context's end does.
    fn reset(&mut self) {
        self.sticky = SUCCESS;
        self.streams = new_streams();
        self.blas.clear();
        self.functions.clear();
        self.shared.clear();
    }
}

fn lock() -> MutexGuard<'static, Driver> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does a call's work, if the device is in a state for it.
fn call(work: impl FnOnce(&mut Driver) -> Status) -> Status {
    let mut driver = lock();
    if !driver.initialised {
        return NOT_INITIALIZED;
    }
    if driver.sticky != SUCCESS {
        return driver.sticky;
    }
    if Failures::falls(&mut driver.failures.lost) {
        driver.sticky = DEVICE_UNAVAILABLE;
        driver.fault = c"the device was lost, as asked".to_owned();
        return DEVICE_UNAVAILABLE;
    }
    work(&mut driver)
}

/// As [`call`], for what needs a context of this thread.
pub(crate) fn within(work: impl FnOnce(&mut Driver) -> Status) -> Status {
    if CURRENT.get() == 0 {
        return INVALID_CONTEXT;
    }
    call(work)
}

/// Writes a result.
///
/// # Safety
/// `to` is null or valid for a write.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Status {
    if to.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: as promised.
    unsafe { to.write(value) };
    SUCCESS
}

/// What the last fault was, as a C string that lasts until the next one.
#[unsafe(no_mangle)]
pub extern "C" fn standin_fault() -> *const c_char {
    lock().fault.as_ptr()
}

/// Sets a failure as `SPARSE_STANDIN_FAIL` does; an empty text clears all, and a device that has failed starts anew, without
/// what was on it. 1 where the text is not understood.
///
/// # Safety
/// `text` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn standin_inject(text: *const c_char) -> c_int {
    // SAFETY: as promised.
    let text = unsafe { CStr::from_ptr(text) };
    let mut driver = lock();
    if text.is_empty() && driver.sticky != SUCCESS {
        driver.reset();
    }
    c_int::from(!text.to_str().is_ok_and(|text| driver.failures.set(text)))
}

/// Sets the seed of the order in which streams and threads run.
#[unsafe(no_mangle)]
pub extern "C" fn standin_seed(seed: u64) {
    lock().streams.random = crate::streams::Random::new(seed);
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuInit(_flags: c_uint) -> Status {
    if number("SPARSE_STANDIN_DEVICES", 1) == 0 {
        return NO_DEVICE;
    }
    lock().initialised = true;
    SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller's pointer, checked for null.
    unsafe { put(version, number("SPARSE_STANDIN_DRIVER", 12050) as c_int) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    // SAFETY: as above.
    call(|_| unsafe { put(count, number("SPARSE_STANDIN_DEVICES", 1) as c_int) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
    if ordinal < 0 || ordinal.cast_unsigned() as u64 >= number("SPARSE_STANDIN_DEVICES", 1) {
        return INVALID_DEVICE;
    }
    // SAFETY: as above.
    call(|_| unsafe { put(device, ordinal) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetName(
    name: *mut c_char,
    len: c_int,
    _device: c_int,
) -> Status {
    call(|_| {
        let text = c"Sparse stand-in (no GPU)".to_bytes_with_nul();
        let Ok(len) = usize::try_from(len) else {
            return INVALID_VALUE;
        };
        if name.is_null() || len == 0 {
            return INVALID_VALUE;
        }
        let n = text.len().min(len);
        // SAFETY: the caller's buffer has `len` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, n);
            name.add(n - 1).write(0);
        }
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    _device: c_int,
) -> Status {
    call(|_| {
        let capability = number("SPARSE_STANDIN_CAPABILITY", 80) as c_int;
        let answer = match attribute {
            1 => 1024,
            2 | 3 => 1024,
            4 => 64,
            5 => c_int::MAX,
            6 | 7 => 65535,
            8 => ALWAYS_SHARED as c_int,
            10 => 32,
            16 => 2,
            75 => capability / 10,
            76 => capability % 10,
            97 => MOST_SHARED,
            // Memory is allocated and freed in the order of streams.
            115 => 1,
            _ => 0,
        };
        // SAFETY: the caller's pointer, checked for null.
        unsafe { put(value, answer) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Status {
    // SAFETY: as above.
    call(|driver| unsafe { put(bytes, driver.streams.memory.total as usize) })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    within(|driver| {
        let memory = &driver.streams.memory;
        let (left, all) = ((memory.total - memory.used) as usize, memory.total as usize);
        // SAFETY: as above.
        unsafe {
            put(free, left);
            put(total, all)
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDevicePrimaryCtxRetain(
    context: *mut *const c_void,
    _device: c_int,
) -> Status {
    call(|driver| {
        driver.retained += 1;
        // SAFETY: as above.
        unsafe { put(context, (&raw const CONTEXT).cast()) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
    let mut driver = lock();
    driver.retained = driver.retained.saturating_sub(1);
    if driver.retained == 0 {
        driver.reset();
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuCtxGetCurrent(context: *mut *const c_void) -> Status {
    // SAFETY: as above.
    unsafe { put(context, CURRENT.get() as *const c_void) }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuCtxSetCurrent(context: *const c_void) -> Status {
    CURRENT.set(context as usize);
    SUCCESS
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuCtxSynchronize() -> Status {
    within(|driver| {
        let result = driver.streams.all();
        driver.settle(result)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamCreate(stream: *mut u64, _flags: c_uint) -> Status {
    within(|driver| {
        let handle = driver.handle();
        driver.streams.queues.insert(handle, Default::default());
        // SAFETY: as above.
        unsafe { put(stream, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamDestroy_v2(stream: u64) -> Status {
    within(|driver| {
        // Its work goes on; it is run here, since nobody can wait for it.
        let status = driver.wait(|streams| streams.is_idle(stream));
        driver.streams.queues.remove(&stream);
        status
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamSynchronize(stream: u64) -> Status {
    within(|driver| driver.wait(|streams| streams.is_idle(stream)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) -> Status {
    within(|driver| match driver.streams.events.get(&event) {
        None => INVALID_HANDLE,
        Some(Event { queued, .. }) => {
            let number = *queued;
            driver.queue(stream, Work::Wait { event, number })
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuEventCreate(event: *mut u64, _flags: c_uint) -> Status {
    within(|driver| {
        let handle = driver.handle();
        driver.streams.events.insert(handle, Event::default());
        // SAFETY: as above.
        unsafe { put(event, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventRecord(event: u64, stream: u64) -> Status {
    within(|driver| match driver.streams.events.get_mut(&event) {
        None => INVALID_HANDLE,
        Some(record) => {
            record.queued += 1;
            let number = record.queued;
            driver.queue(stream, Work::Record { event, number })
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventSynchronize(event: u64) -> Status {
    within(|driver| driver.wait(|streams| streams.is_reached(event)))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventQuery(event: u64) -> Status {
    within(|driver| {
        if driver.streams.is_reached(event) {
            SUCCESS
        } else {
            NOT_READY
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventDestroy_v2(event: u64) -> Status {
    within(|driver| {
        // What waits for it still does: it is kept until its records are reached.
        let status = driver.wait(|streams| streams.is_reached(event));
        driver.streams.events.remove(&event);
        status
    })
}

fn allocate(driver: &mut Driver, size: usize) -> Result<u64, Status> {
    if size == 0 {
        return Err(INVALID_VALUE);
    }
    if Failures::falls(&mut driver.failures.alloc) {
        return Err(OUT_OF_MEMORY);
    }
    driver
        .streams
        .memory
        .reserve(size as u64)
        .ok_or(OUT_OF_MEMORY)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, size: usize) -> Status {
    within(|driver| match allocate(driver, size) {
        Err(status) => status,
        Ok(at) => {
            driver.streams.memory.map(at, size as u64);
            // SAFETY: as above.
            unsafe { put(to, at) }
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAllocAsync(to: *mut u64, size: usize, stream: u64) -> Status {
    within(|driver| match allocate(driver, size) {
        Err(status) => status,
        Ok(at) => {
            // SAFETY: as above.
            let status = unsafe { put(to, at) };
            if status != SUCCESS {
                return status;
            }
            let size = size as u64;
            driver.queue(stream, Work::Map { at, size })
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFree_v2(at: u64) -> Status {
    within(|driver| {
        // A device finishes its work first.
        let result = driver.streams.all();
        let status = driver.settle(result);
        if status == SUCCESS && !driver.streams.memory.unmap(at) {
            return INVALID_VALUE;
        }
        status
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFreeAsync(at: u64, stream: u64) -> Status {
    within(|driver| driver.queue(stream, Work::Unmap { at }))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemsetD8Async(at: u64, value: u8, size: usize, stream: u64) -> Status {
    within(|driver| driver.queue(stream, Work::Fill { at, value, size }))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    at: u64,
    from: *const c_void,
    size: usize,
    stream: u64,
) -> Status {
    within(|driver| {
        let work = if driver.is_pinned(from as u64, size) {
            let from = Host(from.cast_mut().cast());
            Work::UploadPinned { at, from, size }
        } else {
            // SAFETY: the caller's memory has `size` bytes.
            let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size) }.to_vec();
            Work::Upload { at, bytes }
        };
        driver.queue(stream, work)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    at: u64,
    size: usize,
    stream: u64,
) -> Status {
    within(|driver| {
        let pinned = driver.is_pinned(to as u64, size);
        let to = Host(to.cast());
        let status = driver.queue(stream, Work::Download { at, to, size });
        // Into pageable memory the call returns when the copy is done.
        if status == SUCCESS && !pinned {
            driver.wait(|streams| streams.is_idle(stream))
        } else {
            status
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    size: usize,
    stream: u64,
) -> Status {
    within(|driver| driver.queue(stream, Work::Copy { from, to, size }))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemHostAlloc(
    to: *mut *mut c_void,
    size: usize,
    _flags: c_uint,
) -> Status {
    within(|driver| {
        if Failures::falls(&mut driver.failures.pinned) {
            return OUT_OF_MEMORY;
        }
        let Ok(layout) = std::alloc::Layout::from_size_align(size.max(1), 4096) else {
            return INVALID_VALUE;
        };
        // SAFETY: the layout is not empty.
        let memory = unsafe { std::alloc::alloc(layout) };
        if memory.is_null() {
            return OUT_OF_MEMORY;
        }
        // SAFETY: just allocated with this size; what nobody wrote is no number a test expects.
        unsafe { memory.write_bytes(0xa5, size) };
        driver.pinned.insert(memory as u64, (size, layout));
        // SAFETY: as above.
        unsafe { put(to, memory.cast()) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFreeHost(memory: *mut c_void) -> Status {
    let mut driver = lock();
    if driver.sticky == SUCCESS {
        let result = driver.streams.all();
        driver.settle(result);
    }
    if driver.sticky != SUCCESS {
        // What was queued never runs.
        for queue in driver.streams.queues.values_mut() {
            queue.clear();
        }
    }
    match driver.pinned.remove(&(memory as u64)) {
        None => INVALID_VALUE,
        Some((_, layout)) => {
            // SAFETY: allocated by `cuMemHostAlloc` with this layout, and no work that reaches it is left.
            unsafe { std::alloc::dealloc(memory.cast(), layout) };
            driver.sticky
        }
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_char) -> Status {
    within(|driver| {
        // SAFETY: PTX is a C string.
        let text = unsafe { CStr::from_ptr(image) }.to_string_lossy();
        match parse(&text) {
            Err(what) => {
                say(&format!("PTX: {what}"));
                driver.fault = std::ffi::CString::new(what).unwrap_or_default();
                INVALID_PTX
            }
            Ok(functions) => {
                let handle = driver.handle();
                let functions = functions.into_iter().map(Arc::new).collect();
                driver.functions.insert(handle, functions);
                // SAFETY: as above.
                unsafe { put(module, handle) }
            }
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuModuleUnload(module: u64) -> Status {
    within(|driver| match driver.functions.remove(&module) {
        Some(_) => SUCCESS,
        None => INVALID_HANDLE,
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *const c_void,
    module: u64,
    name: *const c_char,
) -> Status {
    within(|driver| {
        // SAFETY: a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let found = driver
            .functions
            .get(&module)
            .and_then(|all| all.iter().find(|f| f.name == name));
        match found {
            None => NOT_FOUND,
            // SAFETY: as above. The module holds the function while it is loaded.
            Some(found) => unsafe { put(function, Arc::as_ptr(found).cast()) },
        }
    })
}

/// For the one attribute that is set: a kernel's dynamic shared memory.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuFuncSetAttribute(
    function: *const c_void,
    attribute: c_uint,
    value: c_int,
) -> Status {
    within(|driver| {
        let found = driver.function(function).map(|f| f.name.clone());
        match (found, attribute) {
            (None, _) => INVALID_HANDLE,
            (Some(name), 8) if (0..=MOST_SHARED).contains(&value) => {
                driver.shared.insert(name, value as usize);
                SUCCESS
            }
            _ => INVALID_VALUE,
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuLaunchKernel(
    function: *const c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic: c_uint,
    stream: u64,
    params: *const *const u8,
    _extra: *mut *mut c_void,
) -> Status {
    within(|driver| {
        if Failures::falls(&mut driver.failures.launch) {
            driver.sticky = LAUNCH_FAILED;
            driver.fault = c"the launch failed, as asked".to_owned();
            return LAUNCH_FAILED;
        }
        let Some(found) = driver.function(function) else {
            return INVALID_HANDLE;
        };
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
        if grid.contains(&0)
            || grid_x > 0x7fff_ffff
            || grid_y > 65535
            || grid_z > 65535
            || threads == 0
            || threads > u64::from(found.max_threads)
            || block_z > 64
            || found.shared + dynamic as usize > driver.shared_of(&found.name)
        {
            return INVALID_VALUE;
        }
        let size = found.params.last().map_or(0, |p| p.offset + p.size);
        let mut bytes = vec![0; size];
        for (i, param) in found.params.iter().enumerate() {
            // SAFETY: the caller gives a pointer for each parameter, to a value of its size.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    params.add(i).read(),
                    bytes.as_mut_ptr().add(param.offset),
                    param.size,
                );
            }
        }
        let launch = Launch {
            function: found,
            grid,
            block,
            dynamic,
            params: bytes,
        };
        driver.queue(stream, Work::Launch(Box::new(launch)))
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorName(status: Status, text: *mut *const c_char) -> Status {
    let name = match status {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NOT_INITIALIZED => c"CUDA_ERROR_NOT_INITIALIZED",
        DEVICE_UNAVAILABLE => c"CUDA_ERROR_DEVICE_UNAVAILABLE",
        NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        NOT_READY => c"CUDA_ERROR_NOT_READY",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        702 => c"CUDA_ERROR_LAUNCH_TIMEOUT",
        715 => c"CUDA_ERROR_ILLEGAL_INSTRUCTION",
        716 => c"CUDA_ERROR_MISALIGNED_ADDRESS",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        _ => c"CUDA_ERROR_UNKNOWN",
    };
    // SAFETY: the caller's pointer, checked for null.
    unsafe { put(text, name.as_ptr()) }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorString(
    status: Status,
    text: *mut *const c_char,
) -> Status {
    // SAFETY: as promised by the caller.
    unsafe { cuGetErrorName(status, text) }
}
