//! One turn of a conversation: what open and closed loops do.

use std::sync::Arc;
use std::time::Instant;

use crate::client::Client;
use crate::conversation::{Conversation, Conversations};
use crate::exchange::exchange;
use crate::measurement::Measurement;
use crate::recorder::Recorder;
use crate::request::RequestSettings;

/// What all requests of a run share.
pub struct Shared {
    pub client: Client,
    pub settings: RequestSettings,
    pub conversations: Conversations,
    pub recorder: Arc<Recorder>,
}

impl Shared {
    /// Asks the next question and measures the answer. Gives the conversation back; `None` if the
    /// turn failed, which ends it.
    pub async fn turn(
        &self,
        mut measurement: Measurement,
        mut conversation: Conversation,
    ) -> Option<Conversation> {
        let body = self.settings.body(conversation.ask());
        let keep_text = conversation.goes_on();
        measurement.sent();
        let on_content = |at: Instant| measurement.content(at);
        match exchange(&self.client, body, keep_text, on_content).await {
            Ok(answer) => {
                measurement.answered(&answer);
                conversation.answered(&answer.text);
                Some(conversation)
            }
            Err(failure) => {
                measurement.failed(&failure);
                None
            }
        }
    }
}
