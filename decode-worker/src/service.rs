//! The `Generation` service: one session per gateway.

use std::sync::Arc;

use protocol::v1::{self, generation_server::Generation};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::Context;
use crate::session::Session;

/// Frames that wait to be written to a gateway. At the limit the session waits, and after
/// `session::OUTPUT_QUEUE` further tokens its requests are cancelled: their gateway is not reading.
const FRAME_QUEUE: usize = 64;

/// Owns requests on behalf of gateways.
pub struct GenerationService {
    context: Arc<Context>,
}

impl GenerationService {
    /// A service over a worker's engine.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Generation for GenerationService {
    type SessionStream = ReceiverStream<Result<v1::StepFrame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (frames, stream) = mpsc::channel(FRAME_QUEUE);
        let session = Session::new(self.context.clone(), frames);
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
