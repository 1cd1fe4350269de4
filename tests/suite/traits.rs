//! What every public loss promises beside its numbers: a small value that travels between threads and through a configuration file.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use prefopt::{
    PreferenceBatch, PreferenceLoss, Result,
    loss::{
        AlphaPo, Aot, AotUnpaired, ApoDown, ApoZero, Average, Bco, BcoPair, Centring, Contrast, Cpo, DiscoPop, Dpo,
        DpoPositive, Drdo, ExoPair, FDivergence, FocalWeight, ForwardKl, FromFn, Gpo, Hinge, Ipo, Kto, Likelihood,
        Minimum, NcaPair, OddsRatio, OfScores, PairWeight, PessimisticDistillation, Plus, ProbabilityMatching,
        ReverseKl, RewardDistillation, RobustDpo, Sft, SimPo, Spo, Sppo, Spread, Target, UncertaintyPenalised,
        UncertaintyWeighted, WeightedBy, Wpo, from_fn,
    },
    reward::{
        BradleyTerry, Cost, CrossEntropy, GeneralPreference, Norm, OptimalTransport, ScaleGate, SquaredCdf,
        WithLikelihood,
    },
    tch::Tensor,
    train::{AdamWConfig, Constant, RunningMean, Warmup},
};

use crate::{columns::Columns, numbers};

fn is_a_value<T: Copy + Send + Sync + Debug + 'static>() {}

#[test]
fn losses_are_values() {
    is_a_value::<Dpo>();
    is_a_value::<RobustDpo>();
    is_a_value::<Hinge>();
    is_a_value::<Ipo>();
    is_a_value::<RewardDistillation>();
    is_a_value::<ProbabilityMatching>();
    is_a_value::<PessimisticDistillation>();
    is_a_value::<ForwardKl>();
    is_a_value::<Minimum>();
    is_a_value::<Target>();
    is_a_value::<Plus<Plus<Dpo, ForwardKl>, Hinge>>();
    is_a_value::<WeightedBy<Dpo, fn(&PreferenceBatch) -> Tensor>>();
    is_a_value::<FromFn<fn(&PreferenceBatch) -> Result<Tensor>>>();
    is_a_value::<Spread>();
    is_a_value::<UncertaintyPenalised>();
    is_a_value::<UncertaintyWeighted<Plus<Dpo, ForwardKl>>>();
    is_a_value::<Drdo>();
    is_a_value::<Contrast>();
    is_a_value::<Likelihood>();
    is_a_value::<FocalWeight>();
    is_a_value::<WithLikelihood>();
    is_a_value::<OptimalTransport>();
    is_a_value::<Cost>();
    is_a_value::<SquaredCdf>();
    is_a_value::<CrossEntropy>();
    is_a_value::<Spo>();
    is_a_value::<PairWeight>();
    is_a_value::<ReverseKl>();
    is_a_value::<Plus<Spo, ReverseKl>>();
    is_a_value::<Gpo>();
    is_a_value::<Centring>();
    is_a_value::<GeneralPreference>();
    is_a_value::<Norm>();
    is_a_value::<ScaleGate>();
    is_a_value::<prefopt::diagnostics::MemberReport>();
    is_a_value::<prefopt::rejection::Calibration>();
    is_a_value::<prefopt::rejection::DensityRatio>();
    is_a_value::<prefopt::rejection::Abstention>();
    is_a_value::<prefopt::rejection::Rejector>();
    is_a_value::<prefopt::rejection::Risk>();
    is_a_value::<prefopt::rejection::LabelRisk>();
    is_a_value::<prefopt::diffusion::Calibration>();
    is_a_value::<prefopt::diffusion::TemperatureUnit>();
    is_a_value::<prefopt::diffusion::Denoising>();
    is_a_value::<prefopt::diffusion::Dimensions>();
    is_a_value::<prefopt::diffusion::SamplePair>();
    is_a_value::<prefopt::diffusion::ConservativeObjective>();
    is_a_value::<ExoPair>();
    is_a_value::<NcaPair>();
    is_a_value::<DiscoPop>();
    is_a_value::<Sppo>();
    is_a_value::<BcoPair>();
    is_a_value::<ApoZero>();
    is_a_value::<ApoDown>();
    is_a_value::<DpoPositive>();
    is_a_value::<Aot>();
    is_a_value::<AotUnpaired>();
    is_a_value::<OfScores<Ipo>>();
    is_a_value::<FDivergence>();
    is_a_value::<Cpo>();
    is_a_value::<SimPo>();
    is_a_value::<AlphaPo>();
    is_a_value::<OddsRatio>();
    is_a_value::<Plus<Sft, OddsRatio>>();
    is_a_value::<Wpo<OfScores<Dpo>>>();
    is_a_value::<Kto>();
    is_a_value::<Bco>();
    is_a_value::<RunningMean>();
    is_a_value::<prefopt::diagnostics::AlarmKind>();
    is_a_value::<prefopt::diagnostics::Limit>();
    is_a_value::<prefopt::diagnostics::Thresholds>();
    is_a_value::<prefopt::train::Position>();
    #[cfg(feature = "data")]
    {
        is_a_value::<prefopt::data::Limits>();
        is_a_value::<prefopt::data::Policy>();
        is_a_value::<prefopt::data::Batching>();
        is_a_value::<prefopt::data::Place>();
    }
    is_a_value::<BradleyTerry>();
    is_a_value::<AdamWConfig>();
    is_a_value::<Warmup>();
}

#[track_caller]
fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, json: &str) {
    assert_eq!(serde_json::to_string(&value).expect("plain data"), json);
    assert_eq!(serde_json::from_str::<T>(json).expect("its own text"), value);
}

#[test]
fn losses_survive_a_configuration_file() -> Result<()> {
    survives(Dpo::new(0.1)?, r#"{"beta":0.1,"flip_rate":0.0}"#);
    survives(Dpo::new(0.1)?.with_flip_rate(0.25)?, r#"{"beta":0.1,"flip_rate":0.25}"#);
    survives(RobustDpo::new(0.1, 0.25)?, r#"{"beta":0.1,"flip_rate":0.25}"#);
    survives(Hinge::new(2.0)?, r#"{"beta":2.0}"#);
    survives(Ipo::new(0.5)?, r#"{"tau":0.5}"#);
    survives(RewardDistillation::new(0.1)?, r#"{"beta":0.1}"#);
    survives(ProbabilityMatching::to_rewards(0.1)?, r#"{"beta":0.1,"target":"rewards"}"#);
    survives(ProbabilityMatching::to_soft_labels(0.1)?, r#"{"beta":0.1,"target":"soft_labels"}"#);
    let ensemble = PessimisticDistillation::new(0.1)?;
    survives(ensemble, r#"{"beta":0.1,"minimum":"batch"}"#);
    survives(ensemble.with_minimum(Minimum::Pair), r#"{"beta":0.1,"minimum":"pair"}"#);
    survives(ensemble.with_minimum(Minimum::Hull), r#"{"beta":0.1,"minimum":"hull"}"#);
    let dataset = ensemble.with_minimum(Minimum::Dataset { member: 2 });
    survives(dataset, r#"{"beta":0.1,"minimum":{"dataset":{"member":2}}}"#);
    survives(ForwardKl::Exact, r#""exact""#);
    survives(ForwardKl::ReferenceSamples, r#""reference_samples""#);
    survives(ForwardKl::ReferenceSamplesK3, r#""reference_samples_k3""#);
    survives(ForwardKl::OwnResponses, r#""own_responses""#);
    let sum = Dpo::new(0.1)?.plus(0.5, ForwardKl::Exact);
    survives(sum, r#"{"loss":{"beta":0.1,"flip_rate":0.0},"weight":0.5,"term":"exact"}"#);
    survives(Spo::new(0.5)?, r#"{"alpha":0.5,"pair_weight":"equal"}"#);
    survives(ReverseKl::PolicySamples, r#""policy_samples""#);
    survives(Gpo::new(0.1)?, r#"{"beta":0.1,"centring":"prompt"}"#);
    survives(Gpo::new(0.1)?.with_centring(Centring::None), r#"{"beta":0.1,"centring":"none"}"#);
    survives(GeneralPreference::new(0.5)?.with_margin(0.25)?, r#"{"temperature":0.5,"margin":0.25}"#);
    survives(Norm::Free, r#""free""#);
    survives(ScaleGate::Softplus, r#""softplus""#);
    survives(ExoPair::new(0.5, 0.25)?, r#"{"beta":0.5,"label_smoothing":0.25}"#);
    survives(NcaPair::new(0.5)?, r#"{"beta":0.5}"#);
    survives(DiscoPop::new(0.5)?, r#"{"beta":0.5,"temperature":0.05}"#);
    survives(Sppo::hard(0.5)?, r#"{"beta":0.5,"win_rate":"hard"}"#);
    survives(Sppo::to_soft_labels(0.5)?, r#"{"beta":0.5,"win_rate":"soft_labels"}"#);
    survives(Sppo::to_rewards(0.5)?, r#"{"beta":0.5,"win_rate":"rewards"}"#);
    survives(BcoPair::new(0.5)?.with_shift(-0.25)?, r#"{"beta":0.5,"shift":-0.25}"#);
    survives(ApoZero::new(0.5)?, r#"{"beta":0.5}"#);
    survives(ApoDown::new(0.5)?, r#"{"beta":0.5}"#);
    survives(DpoPositive::new(0.5, 5.0)?, r#"{"beta":0.5,"penalty":5.0}"#);
    survives(Aot::new(0.5)?.with_flip_rate(0.25)?, r#"{"beta":0.5,"flip_rate":0.25}"#);
    survives(AotUnpaired::new(0.5)?, r#"{"beta":0.5,"flip_rate":0.0}"#);
    survives(Cpo::new(0.5)?, r#"{"beta":0.5,"flip_rate":0.0}"#);
    survives(SimPo::with_ratio(2.0, 0.25)?, r#"{"beta":2.0,"margin":0.5,"flip_rate":0.0}"#);
    survives(AlphaPo::new(2.0, 0.5, -0.25)?, r#"{"beta":2.0,"margin":0.5,"alpha":-0.25}"#);
    survives(OddsRatio, "null");
    survives(Sft::new(), r#"{"of":"chosen","average":"batch"}"#);
    survives(Sft::of_gold().with_average(Average::Response), r#"{"of":"gold","average":"response"}"#);
    survives(Wpo::new(Ipo::new(0.5)?), r#"{"loss":{"tau":0.5}}"#);
    survives(Spread::Responses, r#""responses""#);
    survives(Spread::Margin, r#""margin""#);
    let penalised = UncertaintyPenalised::new(0.1, 0.5)?;
    survives(penalised, r#"{"beta":0.1,"pessimism":0.5,"spread":"responses"}"#);
    survives(penalised.with_spread(Spread::Margin), r#"{"beta":0.1,"pessimism":0.5,"spread":"margin"}"#);
    let weighted = UncertaintyWeighted::new(Ipo::new(0.5)?, 2.0)?;
    survives(weighted, r#"{"loss":{"tau":0.5},"temperature":2.0,"spread":"margin"}"#);
    survives(BradleyTerry::new(0.01)?, r#"{"centring":0.01}"#);
    survives(
        WithLikelihood::new(BradleyTerry::new(0.01)?, 0.5)?,
        r#"{"objective":{"centring":0.01},"likelihood_weight":0.5}"#,
    );
    survives(Warmup::new(3).then_cosine(9)?, r#"{"steps":3,"cosine_until":9}"#);
    survives(Constant, "null");
    survives(AdamWConfig::default(), r#"{"beta1":0.9,"beta2":0.999,"epsilon":1e-8,"weight_decay":0.0}"#);
    Ok(())
}

#[test]
fn what_a_file_leaves_out_is_the_default() -> Result<()> {
    assert_eq!(serde_json::from_str::<Dpo>(r#"{"beta": 0.1}"#).expect("valid"), Dpo::new(0.1)?);
    let ensemble = serde_json::from_str::<PessimisticDistillation>(r#"{"beta": 0.1}"#).expect("valid");
    assert_eq!(ensemble, PessimisticDistillation::new(0.1)?);
    assert_eq!(serde_json::from_str::<AdamWConfig>("{}").expect("valid"), AdamWConfig::default());
    assert_eq!(serde_json::from_str::<Gpo>(r#"{"beta": 0.1}"#).expect("valid"), Gpo::new(0.1)?);
    assert_eq!(serde_json::from_str::<GeneralPreference>("{}").expect("valid"), GeneralPreference::default());
    assert_eq!(serde_json::from_str::<Warmup>(r#"{"steps": 3}"#).expect("valid"), Warmup::new(3));
    Ok(())
}

/// A reference to a loss, a box of one and a combination are losses themselves.
#[test]
fn composition_is_closed() -> Result<()> {
    let batch = Columns::random(4, 1, 2).batch();
    let dpo = Dpo::new(0.1)?;
    let boxed: Box<dyn PreferenceLoss> = Box::new(dpo);
    let expected = numbers(&dpo.per_pair(&batch)?);
    assert_eq!(numbers(&PreferenceLoss::per_pair(&&dpo, &batch)?), expected);
    assert_eq!(numbers(&boxed.per_pair(&batch)?), expected);
    let deep = boxed.plus(1.0, &dpo).weighted_by(|b| b.logps().chosen().ones_like() * 0.5).plus(0.0, Hinge::new(1.0)?);
    assert_eq!(numbers(&deep.per_pair(&batch)?), expected);
    let shown = format!("{deep:?} {:?}", from_fn(|b| Ok(b.logps().chosen().shallow_clone())));
    assert!(shown.contains("Dpo") && shown.contains("WeightedBy") && shown.contains("FromFn"), "{shown}");
    Ok(())
}
