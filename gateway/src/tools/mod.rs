//! Placeholder until merged.
pub enum Delta {
    Content(String),
    Reasoning(String),
    ToolCall { index: u32, id: String, name: String },
    Arguments { index: u32, text: String },
}
pub struct AnswerParser;
impl AnswerParser {
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        vec![Delta::Content(text.into())]
    }
    pub fn finish(&mut self) -> Vec<Delta> {
        Vec::new()
    }
    pub fn tool_calls(&self) -> u32 {
        0
    }
}
