//! The names of things, as kombu names them (`kombu/transport/redis.py`, `Channel`; golden/02_redis_transport).

/// Parts the fields of a binding, and a queue's name from its priority.
pub(super) const SEPARATOR: &str = "\x06\x16";
/// kombu knows no priority above it.
const HIGHEST_PRIORITY: u8 = 9;

/// How this broker's keys are spelled.
pub(super) struct Keys {
    prefix: String,
    database: i64,
    /// Ascending, and never empty.
    steps: Vec<u8>,
}

impl Keys {
    pub fn new(prefix: String, database: i64, mut steps: Vec<u8>) -> Self {
        if steps.is_empty() {
            steps.push(0);
        }
        Self { prefix, database, steps }
    }

    /// Every list of `queue`, in the order in which they are served: kombu serves 0 first.
    pub fn lists(&self, queue: &str) -> Vec<String> {
        self.steps.iter().map(|&step| self.list_at(queue, step)).collect()
    }

    /// The list of `queue` in which a message of some priority waits.
    pub fn list(&self, queue: &str, priority: Option<u8>) -> String {
        self.list_at(queue, self.step(priority))
    }

    fn list_at(&self, queue: &str, step: u8) -> String {
        format!("{}{queue}{}", self.prefix, suffix(step))
    }

    /// What a list's name has behind the queue's.
    pub fn list_suffix(&self, priority: Option<u8>) -> String {
        suffix(self.step(priority))
    }

    /// What [`Self::list_suffix`] is put behind.
    pub fn base(&self, queue: &str) -> String {
        format!("{}{queue}", self.prefix)
    }

    /// The priority that counts for `priority`: the next lower one that is told apart, or the last if there is none
    /// (`Channel.priority`, which takes Python's element -1 then).
    fn step(&self, priority: Option<u8>) -> u8 {
        let priority = priority.unwrap_or(0).min(HIGHEST_PRIORITY);
        let step = self.steps.iter().rev().find(|&&step| step <= priority).or(self.steps.last());
        step.copied().unwrap_or(0)
    }

    pub fn step_count(&self) -> usize {
        self.steps.len()
    }

    /// Messages in somebody's hands, by delivery tag: `[message, exchange, routing key]`.
    pub fn unacked(&self) -> String {
        format!("{}unacked", self.prefix)
    }

    /// Their delivery tags, scored by when their holder was last heard of, in seconds.
    pub fn unacked_index(&self) -> String {
        format!("{}unacked_index", self.prefix)
    }

    /// What is bound to an exchange: `routing key SEPARATOR pattern SEPARATOR queue`.
    pub fn bindings(&self, exchange: &str) -> String {
        format!("{}{exchange}", self.bindings_prefix())
    }

    pub fn bindings_prefix(&self) -> String {
        format!("{}_kombu.binding.", self.prefix)
    }

    /// Those of them whose queue does not expire; they keep the table from being swept.
    pub fn permanent_bindings(&self, exchange: &str) -> String {
        format!("{}{exchange}", self.permanent_prefix())
    }

    pub fn permanent_prefix(&self) -> String {
        format!("{}_kombu.binding_permanent.", self.prefix)
    }

    /// The exchanges with queues that expire, scored by when their tables may be swept, in milliseconds.
    pub fn deadlines(&self) -> String {
        format!("{}_kombu.binding_deadlines", self.prefix)
    }

    /// The channel on which a fanout exchange's messages are published.
    pub fn topic(&self, exchange: &str, routing_key: &str) -> String {
        match routing_key {
            "" => format!("{}/{}.{exchange}", self.prefix, self.database),
            key => format!("{}/{}.{exchange}/{key}", self.prefix, self.database),
        }
    }

    /// What a fanout exchange's channels are heard by. kombu hears only what was published with the key by which the
    /// queue is bound; a fanout exchange has no keys, and here every message of it is heard.
    pub fn topic_patterns(&self, exchange: &str) -> [String; 2] {
        let mut exact = String::new();
        for character in self.topic(exchange, "").chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\') {
                exact.push('\\');
            }
            exact.push(character);
        }
        let any_key = format!("{exact}/*");
        [exact, any_key]
    }

    /// Ours alone: the queues that are bound to a fanout exchange for good.
    pub fn fanout_queues(&self, exchange: &str) -> String {
        format!("{}rtask-fanout.{exchange}", self.prefix)
    }

    /// Ours alone: that a fanout exchange's message is in a queue already.
    pub fn fanned_out(&self, queue: &str, delivery_tag: &str) -> String {
        format!("{}rtask-fanned-out.{queue}.{delivery_tag}", self.prefix)
    }

    /// Ours alone: names of what is put aside from `queue`, scored by when it is due, in milliseconds.
    pub fn postponed(&self, queue: &str) -> String {
        format!("{}rtask-postponed.{queue}", self.prefix)
    }

    /// By name, what is put aside: `suffix of its list, space, message`.
    pub fn postponed_messages(&self, queue: &str) -> String {
        format!("{}rtask-postponed-messages.{queue}", self.prefix)
    }
}

fn suffix(step: u8) -> String {
    match step {
        0 => String::new(),
        step => format!("{SEPARATOR}{step}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(steps: &[u8]) -> Keys {
        Keys::new("p-".to_owned(), 3, steps.to_vec())
    }

    #[test]
    fn a_priority_has_its_list_as_in_03_publish_priority() {
        let rows = [
            (None, "p-celery"),
            (Some(0), "p-celery"),
            (Some(2), "p-celery"),
            (Some(3), "p-celery\x06\x163"),
            (Some(5), "p-celery\x06\x163"),
            (Some(9), "p-celery\x06\x169"),
            (Some(255), "p-celery\x06\x169"),
        ];
        for (priority, list) in rows {
            assert_eq!(keys(&[0, 3, 6, 9]).list("celery", priority), list);
        }
        // Python's element -1.
        assert_eq!(keys(&[4, 7]).list("celery", Some(1)), "p-celery\x06\x167");
        assert_eq!(keys(&[]).list("celery", Some(5)), "p-celery");
    }

    #[test]
    fn channels_are_named_as_in_16_pidbox_ping() {
        let keys = Keys::new(String::new(), 3, vec![0]);
        assert_eq!(keys.topic("celery.pidbox", ""), "/3.celery.pidbox");
        assert_eq!(keys.topic("celeryev", "task.multi"), "/3.celeryev/task.multi");
        assert_eq!(keys.topic_patterns("e*"), [r"/3.e\*", r"/3.e\*/*"]);
    }
}
