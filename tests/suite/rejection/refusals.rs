//! Each refusal by its message, and settings through a configuration file.

use ndarray::{Array1, Array2, array};
use serde::{Serialize, de::DeserializeOwned};

use prefopt::{
    Result,
    rejection::{Abstention, AccuracyCoverage, Calibration, DensityRatio, LabelRisk, Rejector, Risk},
};

use super::labels::pairs;

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, message: &str) {
    assert_eq!(outcome.expect_err("must be refused").to_string(), message);
}

#[test]
fn refusals() -> Result<()> {
    let (one, risks, none) = (Calibration::new(1.0)?, array![0.1, 0.2], Array1::<f64>::zeros(0));
    let fitted = DensityRatio::kl(1.0)?.fit(risks.view())?;
    for coverage in [0.0, -0.1, 1.1, f64::NAN] {
        let said = format!("coverage must be above 0 and at most 1, got {coverage}");
        refused(fitted.threshold_for_coverage(coverage), &said);
        refused(Rejector::for_coverage(risks.view(), coverage), &said);
        refused(Abstention::keep(coverage), &said);
        refused(AccuracyCoverage::new(risks.view(), &[true, true])?.accuracy_at(coverage), &said);
    }
    for alpha in [1.0, 0.5, -3.0, f64::NAN, f64::INFINITY] {
        refused(DensityRatio::alpha(alpha, 1.0), &format!("alpha must be above 1 and finite, got {alpha}"));
    }
    for lambda in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let said = format!("lambda must be positive and finite, got {lambda}");
        refused(DensityRatio::kl(lambda), &said);
        refused(DensityRatio::alpha(2.0, lambda), &said);
    }
    refused(fitted.threshold(-0.1), "threshold must be at least 0 and finite, got -0.1");
    refused(Rejector::chow(1.5), "cost must be in [0, 1], got 1.5");
    refused(Rejector::confidence(-0.5), "confidence must be in [0, 1], got -0.5");
    refused(Calibration::new(0.0), "temperature must be positive and finite, got 0");

    let logits = array![[0.0, 1.0], [f64::NAN, 1.0]];
    let nan = "logits[2] must be finite, got NaN";
    refused(Calibration::fit(logits.view(), &[0, 1]), nan);
    refused(one.risks(logits.view(), Risk::Entropy), nan);
    let empty = "logits is empty: shape [rows, classes] needs at least one element";
    refused(Calibration::fit(Array2::zeros((0, 3)).view(), &[]), empty);
    refused(one.risks(Array2::zeros((2, 0)).view(), Risk::Entropy), empty);
    let logits = array![[0.0, 1.0], [2.0, 1.0]];
    refused(Calibration::fit(logits.view(), &[0]), "labels must have shape [rows] with rows = 2, got rows = 1");
    refused(Calibration::fit(logits.view(), &[0, 2]), "labels[1] must be a class of the logits, got 2");
    let infinite = array![0.0, f64::INFINITY];
    refused(Calibration::of_margins(infinite.view()), "margins[1] must be finite, got inf");
    refused(one.label_risks(infinite.view(), LabelRisk::Entropy), "margins[1] must be finite, got inf");
    refused(Calibration::of_margins(none.view()), "margins is empty: shape [rows] needs at least one element");

    let bad = "risks[1] must be finite, got inf";
    let no_rows = "risks is empty: shape [rows] needs at least one element";
    for (wrong, said) in [(&infinite, bad), (&none, no_rows)] {
        refused(DensityRatio::kl(1.0)?.fit(wrong.view()), said);
        refused(DensityRatio::alpha(2.0, 1.0)?.fit(wrong.view()), said);
        refused(Rejector::for_coverage(wrong.view(), 0.5), said);
        refused(AccuracyCoverage::new(wrong.view(), &[true, true]), said);
        refused(Abstention::keep(0.5)?.weights(wrong.view()), said);
        refused(Abstention::down_weight(DensityRatio::kl(1.0)?).kept(wrong.view()), said);
    }
    refused(AccuracyCoverage::new(risks.view(), &[true]), "correct must have shape [rows] with rows = 2, got rows = 1");
    let (_, batch) = pairs(&[0, 1, 2, 3])?;
    refused(
        Abstention::keep(0.5)?.apply(batch, risks.view()),
        "risks must have shape [batch] with batch = 4, got batch = 2",
    );
    Ok(())
}

#[test]
fn settings_survive_a_configuration_file() -> Result<()> {
    #[track_caller]
    fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: T, json: &str) {
        assert_eq!(serde_json::to_string(&value).expect("plain data"), json);
        assert_eq!(serde_json::from_str::<T>(json).expect("its own text"), value);
    }
    survives(Calibration::new(2.0)?, r#"{"temperature":2.0}"#);
    survives(DensityRatio::kl(0.5)?, r#"{"divergence":"kl","lambda":0.5}"#);
    survives(DensityRatio::alpha(3.0, 0.5)?, r#"{"divergence":{"alpha":3.0},"lambda":0.5}"#);
    survives(Abstention::keep(0.8)?, r#"{"keep":0.8}"#);
    let down = Abstention::down_weight(DensityRatio::kl(1.0)?);
    survives(down, r#"{"down_weight":{"divergence":"kl","lambda":1.0}}"#);
    survives([Risk::Entropy, Risk::ZeroOne], r#"["entropy","zero_one"]"#);
    survives([LabelRisk::GivenLabel, LabelRisk::Entropy], r#"["given_label","entropy"]"#);
    let said = |json| serde_json::from_str::<DensityRatio>(json).expect_err("must be refused").to_string();
    assert!(said(r#"{"divergence":"kl","lambda":0}"#).starts_with("lambda must be positive and finite, got 0"));
    assert!(said(r#"{"divergence":{"alpha":1},"lambda":1}"#).starts_with("alpha must be above 1 and finite, got 1"));
    assert!(serde_json::from_str::<Abstention>(r#"{"keep":0}"#).is_err());
    Ok(())
}
