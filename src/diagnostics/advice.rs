use super::AlarmKind;

impl AlarmKind {
    /// Why it matters, in one sentence.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ReferenceMismatch => {
                "Before the first update the policy is its reference, so cached and live log-probabilities must agree: masks, templates, columns or models differ."
            }
            Self::ReferenceIsPolicy => {
                "A policy that has been updated differs from its reference: either the reference moves with it, or the updates do not reach it."
            }
            Self::BothFall => {
                "Probability leaves the chosen and the rejected responses for ones that nobody has judged, which the loss does not see."
            }
            Self::RunawayMargins => {
                "A label that is trusted without limit sends the log-ratio margin to infinity, where no finite reward explains it."
            }
            Self::BeyondTeachers => {
                "The policy is surer of the pairs than the reward models that it learns from or is compared with."
            }
            Self::LabelsReversed => {
                "What is trained as better is what the reward models, or held-out labels, call worse: columns are swapped or labels reversed."
            }
            Self::OpposedLabels => "The same pair is labelled both ways, and the two labels undo each other.",
            Self::LossStuck => {
                "A loss of ln 2 is that of a policy which has learned nothing: labels contradict each other, the mask hides the responses, or the rate is too low."
            }
            Self::NonFinite => "A number that has left its range, or goes there, makes the next steps NaN.",
            Self::EntropyCollapse => {
                "The policy writes ever fewer texts: mass has gathered on few responses, judged or not."
            }
            Self::LengthDrift => {
                "Length is what the preferences seem to reward, or what the loss rewards by summing over tokens."
            }
            Self::Repetition => {
                "Samples that repeat themselves are a degenerate policy's, whatever accuracy and margins say."
            }
        }
    }

    /// What the literature names against it, in one sentence.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::ReferenceMismatch => {
                "Compute the reference's log-probabilities anew, by the code, precision and tokenisation of the policy's, with dropout off."
            }
            Self::ReferenceIsPolicy => {
                "Freeze a copy of the start for the reference, or cache its log-probabilities; check that the optimiser holds the policy's parameters."
            }
            Self::BothFall => {
                "Lower the learning rate, or add the forward divergence (ForwardKl) or the likelihood of the chosen response."
            }
            Self::RunawayMargins => {
                "Give the loss a finite target: distil a reward model (RewardDistillation), or take Ipo or a flip rate; or stop earlier."
            }
            Self::BeyondTeachers => {
                "Distil the reward models' margins (RewardDistillation, PessimisticDistillation) in place of labels, raise β, or stop earlier."
            }
            Self::LabelsReversed => {
                "Look at some pairs: which column is chosen, what a vote of 0 means, and whether scores belong to their responses."
            }
            Self::OpposedLabels => {
                "Merge the votes on a pair into a soft label (ProbabilityMatching), or drop the duplicates."
            }
            Self::LossStuck => {
                "Look for pairs with both labels, check that the mask selects the responses, then raise the learning rate."
            }
            Self::NonFinite => {
                "Lower the learning rate or the bound on the gradient's norm, and look for empty responses and responses of probability 0."
            }
            Self::EntropyCollapse => {
                "Raise β, lower the learning rate or stop earlier, or add the forward divergence (ForwardKl), which holds mass on what the reference writes."
            }
            Self::LengthDrift => {
                "Normalise by length (PairLogps::per_token), balance the pairs' lengths, or be pessimistic over reward models of different length bias."
            }
            Self::Repetition => {
                "Lower the learning rate or stop earlier, and add the forward divergence (ForwardKl) or the likelihood of the chosen response."
            }
        }
    }
}
