//! Parameters in half precision.

use prefopt::{
    Result,
    tch::{Kind, Tensor},
    train::{AdamW, AdamWConfig},
};

use super::bits;
use crate::{number, numbers};

/// Under half a unit in the last place a step, up to many steps.
#[test]
fn masters_keep_what_rounding_loses() -> Result<()> {
    let leaf = |kind| Tensor::from_slice2(&[[1.0, -1.0], [2.0, 0.5]]).to_kind(kind).set_requires_grad(true);
    let steps = |x: &Tensor, masters: bool| -> Result<AdamW> {
        let optimizer = AdamW::new(vec![x.shallow_clone()], AdamWConfig::default())?;
        let mut optimizer = if masters { optimizer.with_masters() } else { optimizer };
        for _ in 0..20 {
            optimizer.zero_grad();
            (x.to_kind(Kind::Float) * 3.0).sum(Kind::Float).backward();
            optimizer.step(2e-4, 1.0)?;
        }
        Ok(optimizer)
    };
    let (lost, kept, transposed, twin) = (
        leaf(Kind::BFloat16),
        leaf(Kind::BFloat16),
        leaf(Kind::BFloat16).detach().tr().contiguous().tr().set_requires_grad(true),
        leaf(Kind::Float),
    );
    let start = numbers(&lost);
    steps(&lost, false)?;
    assert_eq!(numbers(&lost), start);
    let optimizer = steps(&kept, true)?;
    let state = steps(&twin, true)?.state();
    let [own] = optimizer.state().try_into().expect("one parameter");
    let [of_twin] = state.try_into().expect("one parameter");
    let master = own.master.expect("is in half precision");
    assert!(of_twin.master.is_none());
    for (found, expected) in [(&master, &twin), (&own.first, &of_twin.first), (&own.second, &of_twin.second)] {
        assert_eq!((found.kind(), bits(found)), (Kind::Float, bits(expected)));
    }
    assert_eq!((kept.kind(), bits(&kept)), (Kind::BFloat16, bits(&twin.to_kind(Kind::BFloat16))));
    assert!(numbers(&kept) != start && number(&master) < 0.997, "{}", number(&master));
    // Asked for twice, and laid out otherwise.
    let again = steps(&transposed, true)?.with_masters().state();
    assert_eq!(bits(again[0].master.as_ref().expect("is in half precision")), bits(&master));
    assert!(!transposed.is_contiguous() && numbers(&transposed) == numbers(&kept));
    Ok(())
}
