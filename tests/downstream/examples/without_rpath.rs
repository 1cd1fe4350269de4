//! The same without the build script's line.

fn main() {
    let sum = downstream::compute();
    assert_eq!(sum, 3.);
    println!("without_rpath: libtorch computed {sum}");
}
