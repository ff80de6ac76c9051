//! Workers that may pair, because they compute the same bits.

use protocol::v1::LatencyModel;

use crate::holders::Slot;

/// Steps of a kind that a worker is credited with at most, so that who comes later, or becomes slower,
/// is heard too.
const STEPS_COUNTED_MAX: u64 = 1_024;

/// Workers that compute the same bits.
#[derive(Default)]
pub struct Pool {
    /// In the order of their names: of equal costs the first wins.
    pub decode: Vec<Slot>,
    /// Likewise.
    pub prefill: Vec<Slot>,
    /// What those of them measured that have made the most steps, for those that have made few.
    pub latency: Option<LatencyModel>,
}

impl Pool {
    /// Each half of the model is taken from who knows most about it; of those who know about as
    /// much, from who said it last.
    pub fn learn(&mut self, mut measured: LatencyModel) {
        measured.prefill_steps = measured.prefill_steps.min(STEPS_COUNTED_MAX);
        measured.decode_steps = measured.decode_steps.min(STEPS_COUNTED_MAX);
        let known = self.latency.get_or_insert(measured);
        if measured.prefill_steps >= known.prefill_steps / 2 {
            let LatencyModel { prefill_token_us, prefill_attended_us, prefill_steps, .. } =
                measured;
            *known =
                LatencyModel { prefill_token_us, prefill_attended_us, prefill_steps, ..*known };
        }
        if measured.decode_steps >= known.decode_steps / 2 {
            let LatencyModel { step_us, sequence_us, attended_us, decode_steps, .. } = measured;
            *known = LatencyModel { step_us, sequence_us, attended_us, decode_steps, ..*known };
        }
    }
}
