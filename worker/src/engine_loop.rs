//! What runs beside a host: take commands, step, send news.

use std::sync::Arc;

use engine::{
    Engine, RefusedSequence, RunnerError, SequenceId, SequenceOutput, SequenceRequest, StepOutput,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::host::{Command, KvEventBatch, KvSnapshot, Reply, Shared, StepUnderWay};
use crate::news::Outputs;

/// See the module's description.
pub(crate) struct EngineLoop {
    pub(crate) engine: Engine,
    pub(crate) inbox: mpsc::Receiver<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) kv_events: mpsc::Sender<KvEventBatch>,
    pub(crate) kv_sequence: u64,
    pub(crate) recipients: Vec<(SequenceId, Outputs)>,
}

impl EngineLoop {
    /// Runs until every handle to the host is gone. Errors: the device failed.
    pub(crate) fn run_on_thread(mut self) -> Result<(), RunnerError> {
        self.warm_up()?;
        while self.take_commands() {
            let began = Instant::now();
            let output = self.step()?;
            if output.is_simulated {
                std::thread::sleep(output.took.saturating_sub(began.elapsed()));
            }
            if self.conclude(output) {
                // Nothing can be computed until someone says something.
                let Some(command) = self.inbox.blocking_recv() else { break };
                self.apply(command);
            }
        }
        Ok(())
    }

    /// The same as a task: steps take their time by the runtime's clock.
    pub(crate) async fn run_as_task(mut self) -> Result<(), RunnerError> {
        self.warm_up()?;
        while self.take_commands() {
            let output = self.step()?;
            if output.took.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(output.took).await;
            }
            if self.conclude(output) {
                let Some(command) = self.inbox.recv().await else { break };
                self.apply(command);
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<StepOutput, RunnerError> {
        let shared = &self.shared;
        self.engine.step_announced(|shape| {
            let mut status = shared.status.lock();
            let predicted_us = status.latency.predict_step_us(&shape);
            status.step = Some(StepUnderWay { began: Instant::now(), predicted_us });
        })
    }

    fn warm_up(&mut self) -> Result<(), RunnerError> {
        let outputs = self.engine.warm_up()?;
        let mut status = self.shared.status.lock();
        outputs.iter().for_each(|output| status.latency.record(output));
        drop(status);
        self.shared.warm.cancel();
        Ok(())
    }

    /// Reports and delivers what a step did. True: there was nothing to do, and nothing is said
    /// that was not heard.
    fn conclude(&mut self, output: StepOutput) -> bool {
        self.report(&output);
        if !output.is_idle() {
            self.deliver(output.sequences);
            return false;
        }
        self.shared.became_idle.notify_one();
        self.shared.releases.lock().is_empty()
    }

    /// Takes in all commands and releases. False once every handle to the host is gone.
    fn take_commands(&mut self) -> bool {
        // An overflowing release was pushed after its sequence's commands were sent. Taking these
        // releases first and applying them last never applies one before its commands.
        let releases = std::mem::take(&mut *self.shared.releases.lock());
        let open = loop {
            match self.inbox.try_recv() {
                Ok(command) => self.apply(command),
                Err(mpsc::error::TryRecvError::Empty) => break true,
                Err(mpsc::error::TryRecvError::Disconnected) => break false,
            }
        };
        releases.into_iter().for_each(|id| self.release(id));
        open
    }

    fn release(&mut self, id: SequenceId) {
        self.engine.release(id);
        self.recipients.retain(|(other, _)| *other != id);
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Generate(request, outputs, reply) => {
                self.accept(request, outputs, reply, Engine::generate);
            }
            Command::Prefill(request, outputs, reply) => {
                self.accept(request, outputs, reply, Engine::prefill);
            }
            Command::Reserve(request, outputs, reply) => {
                self.accept(request, outputs, reply, Engine::reserve);
            }
            Command::Activate { id, first_token, ended } => {
                let _gone = ended.send(self.engine.activate(id, first_token));
            }
            Command::ComputeReserved { id, first_token, ended } => {
                let _gone = ended.send(self.engine.compute_reserved(id, first_token));
            }
            Command::Release(id) => self.release(id),
            Command::Wake => {}
            Command::Snapshot(reply) => {
                // Events that wait to be numbered would come twice otherwise.
                self.publish_kv_events();
                let hashes = self.engine.cached_hashes();
                let _gone = reply.send(KvSnapshot { next_sequence: self.kv_sequence, hashes });
            }
        }
    }

    /// A caller that no longer waits has dropped its handle, which releases what was accepted.
    fn accept<T>(
        &mut self,
        request: SequenceRequest,
        outputs: Outputs,
        reply: Reply<T>,
        submit: impl FnOnce(&mut Engine, SequenceRequest) -> Result<T, RefusedSequence>,
    ) {
        let id = request.id;
        let accepted = submit(&mut self.engine, request);
        if accepted.is_ok() {
            self.recipients.push((id, outputs));
        }
        let _gone = reply.send(accepted);
    }

    fn report(&mut self, output: &StepOutput) {
        self.publish_kv_events();
        let mut status = self.shared.status.lock();
        status.load = self.engine.load();
        status.kv_sequence = self.kv_sequence;
        status.steps += u64::from(!output.is_idle());
        status.step = None;
        status.guesses.add(output.guesses);
        status.latency.record(output);
        if self.engine.uses_latency()
            && let Some(latency) = status.latency.model()
        {
            self.engine.learn_latency(latency);
        }
    }

    fn publish_kv_events(&mut self) {
        let events = self.engine.take_kv_events();
        if !events.is_empty() {
            let batch = KvEventBatch { sequence: self.kv_sequence, events };
            self.kv_sequence += 1;
            let _dropped_is_a_gap = self.kv_events.try_send(batch);
        }
    }

    /// One message per recipient.
    fn deliver(&mut self, news: Vec<SequenceOutput>) {
        let mut messages: Vec<(Outputs, Vec<SequenceOutput>)> = Vec::new();
        for output in news {
            let recipient = self.recipients.iter().find(|(id, _)| *id == output.id);
            let Some((_, outputs)) = recipient else { continue };
            match messages.iter_mut().find(|(other, _)| other.is(outputs)) {
                Some((_, message)) => message.push(output),
                None => messages.push((outputs.clone(), vec![output])),
            }
        }
        for (outputs, message) in messages {
            let finished: Vec<SequenceId> =
                message.iter().filter(|news| news.has_ended()).map(|news| news.id).collect();
            if !outputs.send(message) {
                self.abandon(&outputs);
            } else {
                self.recipients.retain(|(id, _)| !finished.contains(id));
            }
        }
    }

    /// Nobody takes these sequences' news.
    fn abandon(&mut self, outputs: &Outputs) {
        let abandoned = |(_, other): &mut (SequenceId, Outputs)| other.is(outputs);
        for (id, _) in self.recipients.extract_if(.., abandoned) {
            self.engine.abandon(id);
        }
    }
}
