//! NVIDIA's run-time compiler, from the library that its Python package carries. It needs no GPU.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use libloading::Library;

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// The compiler.
pub(crate) struct Nvrtc {
    library: Library,
    /// What the compiler itself loads by name.
    _builtins: Library,
}

impl Nvrtc {
    /// Opens the libraries in a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, String> {
        let load = |name: &str| {
            let path = folder.join(name);
            // SAFETY: NVIDIA's libraries may be loaded by anybody.
            unsafe { Library::new(&path) }.map_err(|e| format!("{}: {e}", path.display()))
        };
        Ok(Self {
            _builtins: load("libnvrtc-builtins.so.12.0")?,
            library: load("libnvrtc.so.12")?,
        })
    }

    /// Compiles CUDA C to PTX.
    pub(crate) fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(String, String)],
        flags: &[&str],
    ) -> Result<String, String> {
        let text = |text: &str| CString::new(text).map_err(|e| format!("{name}: {e}"));
        let (source, file) = (text(source)?, text(name)?);
        let mut names = Vec::new();
        let mut contents = Vec::new();
        for (name, content) in headers {
            names.push(text(name)?);
            contents.push(text(content)?);
        }
        let flags = flags
            .iter()
            .map(|flag| text(flag))
            .collect::<Result<Vec<_>, _>>()?;
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, contents, flags) = (pointers(&names), pointers(&contents), pointers(&flags));
        let count = |list: &[*const c_char]| c_int::try_from(list.len()).unwrap_or(0);
        // SAFETY: the signatures are those of nvrtc.h 12.0, every text ends in a zero and outlives the calls, and buffers
        // have the sizes the library asked for.
        unsafe {
            let create = self.symbol::<Create>(c"nvrtcCreateProgram")?;
            let compile = self.symbol::<Compile>(c"nvrtcCompileProgram")?;
            let destroy = self.symbol::<Destroy>(c"nvrtcDestroyProgram")?;
            let mut program = null_mut();
            let (names, contents) = if headers.is_empty() {
                (null(), null())
            } else {
                (names.as_ptr(), contents.as_ptr())
            };
            let headers = c_int::try_from(headers.len()).unwrap_or(0);
            let status = create(
                &raw mut program,
                source.as_ptr(),
                file.as_ptr(),
                headers,
                contents,
                names,
            );
            if status != 0 {
                return Err(format!("{name}: NVRTC took no program ({status})"));
            }
            let status = compile(program, count(&flags), flags.as_ptr());
            let log = self.text(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
            let result = if status == 0 && log.trim().is_empty() {
                self.text(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX")
            } else {
                // A warning is as good as an error here.
                Err(format!("{name}: NVRTC says ({status}):\n{log}"))
            };
            destroy(&raw mut program);
            result
        }
    }

    /// # Safety
    /// The symbol has this type.
    unsafe fn symbol<T: Copy>(&self, name: &std::ffi::CStr) -> Result<T, String> {
        // SAFETY: as promised by the caller.
        unsafe { self.library.get::<T>(name.to_bytes_with_nul()) }
            .map(|symbol| *symbol)
            .map_err(|e| format!("NVRTC: {e}"))
    }

    /// # Safety
    /// `program` is live, and the names are of a size and of a text function.
    unsafe fn text(
        &self,
        program: Program,
        size: &std::ffi::CStr,
        get: &std::ffi::CStr,
    ) -> Result<String, String> {
        // SAFETY: as promised by the caller; the buffer has the size the library names.
        unsafe {
            let (size, get) = (self.symbol::<Size>(size)?, self.symbol::<Text>(get)?);
            let mut bytes = 0;
            size(program, &raw mut bytes);
            let mut buffer = vec![0u8; bytes];
            get(program, buffer.as_mut_ptr().cast());
            while buffer.last() == Some(&0) {
                buffer.pop();
            }
            String::from_utf8(buffer).map_err(|e| format!("NVRTC: {e}"))
        }
    }
}
