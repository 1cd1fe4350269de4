//! The one line a user writes for a binary that is started without cargo. (A user writes `rustc-link-arg`; `-bins`
//! leaves the example without it, to prove that under cargo none is needed.)

fn main() {
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}", std::env::var("DEP_PREFOPT_LIBTORCH_LIB").unwrap());
}
