//! The choice among libtorch's f32 products.

use prefopt::{
    Result,
    matmul::{Product, choose, current, set},
};

use crate::autograd::alone;

/// In one test and in a process of its own, because the product is the whole process's: on a processor that rounds to bfloat16 the
/// trials would spoil another test's digits.
#[test]
fn the_product_is_chosen_by_trial() -> Result<()> {
    if !alone("products::the_product_is_chosen_by_trial") {
        return Ok(());
    }
    let before = current();
    for product in [Product::OneDnn, Product::Mkl] {
        set(product)?;
        assert_eq!(current(), product);
    }

    let report = choose()?;
    assert_eq!(current(), report.chosen);
    assert!(report.mkl.gflops > 0.0 && report.onednn.is_none_or(|trial| trial.gflops > 0.0), "{report:?}");
    let chosen = match report.chosen {
        Product::Mkl => report.mkl,
        Product::OneDnn => report.onednn.expect("what was chosen was tried"),
    };
    assert!(chosen.error <= 5e-6, "{report:?}");
    let said = report.to_string();
    assert!(said.starts_with(&format!("f32 products by {}: ", report.chosen)), "{said}");

    // By the same figures from wherever it is called.
    for product in [Product::OneDnn, Product::Mkl] {
        set(product)?;
        assert_eq!(choose()?, report);
        assert_eq!(current(), report.chosen);
    }

    for (product, name) in [(Product::Mkl, r#""mkl""#), (Product::OneDnn, r#""onednn""#)] {
        assert_eq!(serde_json::to_string(&product).expect("a name"), name);
        assert_eq!(serde_json::from_str::<Product>(name).expect("a product"), product);
    }
    let json = serde_json::to_value(report).expect("numbers and a name");
    assert_eq!(json["mkl"]["gflops"], report.mkl.gflops);

    set(before)?;
    assert_eq!(current(), before);
    Ok(())
}
