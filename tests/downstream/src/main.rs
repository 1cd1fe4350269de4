fn main() {
    let sum = downstream::compute();
    assert_eq!(sum, 3.);
    println!("downstream: libtorch computed {sum}");
}
