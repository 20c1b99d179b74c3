//! Asking workers something and hearing what they answer: what `rtask control` and `rtask inspect` share.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use clap::Args;
use jiff::Timestamp;
use rtask_broker::{Broker, Consumer};
use rtask_protocol::{
    Accept, Message,
    control::{self, Command, Recipients, ReplyTo},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    failure::{Attempt, Code, Failure},
    output::Output,
    progress::Step,
    settings::{Names, Seconds, Settings},
    visible,
};

/// Who is asked, and how long answers are waited for.
#[derive(Clone, Debug, Args)]
pub struct Reach {
    /// Ask only these nodes, with commas between them, such as celery@host1
    #[arg(short, long, value_name = "NODES", global = true)]
    destination: Option<Names>,
    /// Wait so many seconds for answers
    #[arg(short, long, value_name = "SECONDS", default_value = "1", global = true)]
    timeout: Seconds,
}

/// What each node answered: `{"ok": ...}` or `{"error": ...}`.
pub type Answers = BTreeMap<String, Value>;

impl Reach {
    /// Ask, and collect the answers until the time is over or everybody who was named has answered. Both are signed where
    /// tasks are.
    ///
    /// # Errors
    /// When the broker cannot be asked, and for what is wrong with the settings of signatures.
    pub async fn ask(
        &self,
        broker: &dyn Broker,
        method: &str,
        arguments: Map<String, Value>,
        settings: &Settings,
        output: Output,
    ) -> Result<Answers, Failure> {
        let (accept, signer) = (settings.accept()?, settings.signer()?);
        let _step = Step::begin(output, "Waiting for workers to answer");
        let (queue, mut replies) = broker.reply_queue().await.attempt("failed to make a queue for answers")?;
        let ticket = Uuid::new_v4().to_string();
        let command = Command {
            to: self.destination.as_ref().map_or(Recipients::All, |nodes| Recipients::Nodes(nodes.0.clone())),
            reply_to: Some(ReplyTo { exchange: String::new(), routing_key: queue }),
            ticket: Some(ticket.clone()),
            ..Command::new(method, arguments)
        };
        let nobody_waits_after = Timestamp::now().as_duration().as_secs_f64() + self.timeout.0.as_secs_f64();
        let broadcast = broker.broadcast(command.message(nobody_waits_after, signer.as_deref())).await;
        broadcast.attempt(format_args!("failed to send `{method}` to the workers"))?;
        let all = self.destination.as_ref().map_or(usize::MAX, |nodes| nodes.0.len());
        let answers = collect(&mut replies, &ticket, &accept, all, self.timeout.0).await;
        replies.cancel().await;
        Ok(answers)
    }

    pub fn nobody_answered(&self) -> Failure {
        let who = match &self.destination {
            Some(nodes) => format!("none of {}", visible::line(&nodes.0.join(", "))),
            None => "no worker".to_owned(),
        };
        Failure::new(format!("{who} answered within {:?}", self.timeout.0))
            .hint("`rtask doctor` says which workers are alive; --timeout waits longer")
    }
}

/// Up to `all` answers to the question of this ticket.
async fn collect(replies: &mut Consumer, ticket: &str, accept: &Accept, all: usize, timeout: Duration) -> Answers {
    let mut answers = Answers::new();
    let hear = async {
        while answers.len() < all
            && let Some(delivery) = replies.next().await
        {
            answers.extend(read(&delivery.message, ticket, accept));
        }
    };
    // What came until then is what there is.
    let _ = tokio::time::timeout(timeout, hear).await;
    answers
}

/// Nothing, if it is no answer to this question, or one that is not signed as it must be.
fn read(reply: &Message, ticket: &str, accept: &Accept) -> Answers {
    match reply.headers.get("ticket") {
        Some(Value::String(answered)) if answered == ticket => {
            let body = control::body(reply, accept);
            body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default()
        }
        Some(_) | None => Answers::new(),
    }
}

/// Print the answers, and answer the exit code: done only if all are `ok`.
///
/// # Errors
/// When they cannot be written.
pub fn show(answers: &Answers, output: Output) -> Result<ExitCode, Failure> {
    let lines: Vec<String> = answers.iter().map(|(node, answer)| line(node, answer)).collect();
    output.answer(lines.join("\n"), answers)?;
    let is_ok = answers.values().all(|answer| answer.get("error").is_none());
    Ok(if is_ok { ExitCode::SUCCESS } else { Code::Failed.into() })
}

fn line(node: &str, answer: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let told = match (answer.get("ok"), answer.get("error")) {
        (_, Some(error)) => format!("error: {}", text(error)),
        (Some(ok), None) => text(ok),
        (None, None) => answer.to_string(),
    };
    visible::line(&format!("{node}: {told}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_answers_to_the_question_count() {
        let question = Command { ticket: Some("t".to_owned()), ..Command::new("ping", Map::new()) };
        let pong = question.reply("w1@h", &json!({ "ok": "pong" }), None);
        let read = |reply: &Message, ticket: &str| read(reply, ticket, &Accept::default());
        assert_eq!(read(&pong, "t")["w1@h"], json!({ "ok": "pong" }));
        assert!(read(&pong, "other").is_empty());
        assert!(read(&Message { body: "[".into(), ..pong }, "t").is_empty());
        assert!(read(&Message::default(), "t").is_empty());
    }

    #[test]
    fn answers_are_told_by_node() {
        let rows = [
            (json!({ "ok": "pong" }), "w1@h: pong"),
            (json!({ "error": "unknown task" }), "w1@h: error: unknown task"),
            (json!({ "ok": { "a": 1 } }), "w1@h: {\"a\":1}"),
            (json!(["odd\u{1b}"]), "w1@h: [\"odd\\u001b\"]"),
        ];
        for (answer, expected) in rows {
            assert_eq!(line("w1@h", &answer), expected);
        }
    }
}
