//! Compiles `native/` and tells the linker, and the crates that depend on this one, where libtorch lives.

use std::{
    env,
    error::Error,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=native");
    // Set by torch-sys; absent when only documenting (feature `doc-only`).
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        return Ok(());
    };
    compile_native(&lib);
    // Our own tests, examples, benches and doc-tests start without LD_LIBRARY_PATH.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // Nothing refers to libtorch_cuda.so by a symbol, so the linker would drop it and no GPU would be found.
    if lib.join("libtorch_cuda.so").exists() {
        for argument in ["-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"] {
            println!("cargo::rustc-link-arg={argument}");
        }
    }
    // A dependent's build script reads it as DEP_PREFOPT_LIBTORCH_LIB.
    println!("cargo::metadata=libtorch_lib={}", lib.display());
    // Cargo adds link-search folders inside OUT_DIR to the library path of a dependent's `cargo run` and `cargo test`:
    // through this link they find libtorch with no build script of their own.
    let link = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("libtorch");
    match fs::remove_file(&link) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => symlink(&lib, &link)?,
    }
    println!("cargo::rustc-link-search=native={}", link.display());
    Ok(())
}

/// The kernels run millions of times a step, so they are optimised in every profile.
fn compile_native(lib: &Path) {
    let include = lib.with_file_name("include");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).debug(false).warnings(true).extra_warnings(true);
    // libtorch's headers do not compile without warnings; as a system's they are not asked to.
    for folder in [include.clone(), include.join("torch/csrc/api/include")] {
        build.flag("-isystem").flag(folder);
    }
    // What lets a compiler vectorise the exponential; none of these changes how NaN and infinity behave.
    for flag in ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"] {
        build.flag_if_supported(flag);
    }
    build.files(["native/bridge.cpp", "native/kernels.cpp"]).compile("prefopt_native");
}
