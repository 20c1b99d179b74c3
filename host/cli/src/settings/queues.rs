//! `task_queues` and the settings around it: which queues there are, and which of them a worker consumes
//! (`celery/app/amqp.py`, `Queues`).

use std::fmt;

use clap::ValueEnum;
use rtask_broker::{Binding, Exchange, ExchangeKind, Queue};
use rtask_protocol::Headers;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};

use super::{Names, Settings, SettingsError};

/// The queues that are known, in the order in which they are written: a list of names, or a table for each.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TaskQueues(Vec<(String, Option<QueueTable>)>);

/// `[task_queues.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueTable {
    /// What the queue is bound to; the default exchange if neither this nor `bindings` says otherwise.
    pub exchange: Option<String>,
    pub exchange_type: Option<ExchangeType>,
    /// The queue's name, if nothing else is said.
    pub routing_key: Option<String>,
    /// Further bindings, or all of them.
    pub bindings: Vec<BindingTable>,
    pub queue_type: Option<QueueType>,
    /// `x-max-priority`, of a classic queue.
    pub max_priority: Option<u8>,
    /// Whatever else the broker is to be told.
    pub arguments: Headers,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingTable {
    pub exchange: String,
    #[serde(default)]
    pub exchange_type: ExchangeType,
    #[serde(default)]
    pub routing_key: String,
    /// What a headers exchange compares, `x-match` included.
    #[serde(default)]
    pub arguments: Headers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ExchangeType {
    #[default]
    Direct,
    Topic,
    Fanout,
    Headers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    #[default]
    Classic,
    Quorum,
}

const TYPE: &str = "x-queue-type";
const MAX_PRIORITY: &str = "x-max-priority";
/// What every worker's own queue is bound to, and how it is called (`celery/utils/nodenames.py`, `worker_direct`).
const WORKER_DIRECT_EXCHANGE: &str = "C.dq2";
const WORKER_DIRECT_SUFFIX: &str = "dq2";

impl Settings {
    /// The queues that a worker consumes, and that `purge` and `queues` are about: those that are chosen, or all that
    /// are known, without those that are excluded.
    ///
    /// # Errors
    /// For a queue that is not known and may not be made, and when none is left.
    pub fn queues(&self, chosen: Option<&Names>, excluded: Option<&Names>) -> Result<Vec<Queue>, SettingsError> {
        let names: Vec<&str> = match chosen {
            Some(chosen) => chosen.0.iter().map(String::as_str).collect(),
            None if self.task_queues.0.is_empty() => vec![&self.task_default_queue],
            None => self.task_queues.names().collect(),
        };
        let is_excluded = |name: &str| excluded.is_some_and(|excluded| excluded.0.iter().any(|other| other == name));
        let left: Vec<&str> = names.into_iter().filter(|name| !is_excluded(name)).collect();
        if left.is_empty() {
            return Err(SettingsError::NoQueue);
        }
        left.into_iter().map(|name| self.queue(name)).collect()
    }

    /// All that is known of the queue of this name.
    ///
    /// # Errors
    /// If that is nothing, and `task_create_missing_queues` is false.
    pub fn queue(&self, name: &str) -> Result<Queue, SettingsError> {
        match self.task_queues.get(name) {
            Some(Some(table)) => self.declared(name, table),
            Some(None) => Ok(self.plain(name)),
            // Celery makes the default queue from its settings only where no queues are named.
            None if self.task_queues.0.is_empty() && name == self.task_default_queue => Ok(self.default_queue()),
            None if self.task_create_missing_queues => Ok(self.plain(name)),
            None => Err(SettingsError::UnknownQueue(name.to_owned())),
        }
    }

    /// Every queue of which more than the name is known.
    ///
    /// # Errors
    /// For a table that contradicts itself.
    pub fn known_queues(&self) -> Result<Vec<Queue>, SettingsError> {
        let names: Vec<&str> = match self.task_queues.0.is_empty() {
            true => vec![&self.task_default_queue],
            false => self.task_queues.names().collect(),
        };
        names.into_iter().map(|name| self.queue(name)).collect()
    }

    /// The queue that only the worker `node` consumes (`celery/utils/nodenames.py`, `worker_direct`).
    pub fn direct_queue(&self, node: &str) -> Queue {
        let exchange = Exchange { name: WORKER_DIRECT_EXCHANGE.to_owned(), kind: ExchangeKind::Direct };
        let binding = Binding { exchange, routing_key: node.to_owned(), arguments: Headers::new() };
        Queue { bindings: vec![binding], ..Queue::named(format!("{node}.{WORKER_DIRECT_SUFFIX}")) }
    }

    fn default_queue(&self) -> Queue {
        let name = &self.task_default_queue;
        let routing_key = self.task_default_routing_key.as_ref().unwrap_or(name).clone();
        let binding = Binding { exchange: self.default_exchange(), routing_key, arguments: Headers::new() };
        let arguments = self.arguments(self.task_default_queue_type, None, Headers::new());
        Queue { bindings: vec![binding], arguments, ..Queue::named(name) }
    }

    fn default_exchange(&self) -> Exchange {
        let name = self.task_default_exchange.as_ref().unwrap_or(&self.task_default_queue).clone();
        Exchange { name, kind: self.task_default_exchange_type.into() }
    }

    /// Of which only the name is known (`Queues.new_missing`).
    fn plain(&self, name: &str) -> Queue {
        let mut queue = Queue::named(name);
        for binding in &mut queue.bindings {
            binding.exchange.kind = self.task_create_missing_queue_exchange_type.into();
        }
        Queue { arguments: self.arguments(self.task_create_missing_queue_type, None, Headers::new()), ..queue }
    }

    fn declared(&self, name: &str, table: &QueueTable) -> Result<Queue, SettingsError> {
        let refuse = |reason: &str| Err(SettingsError::invalid(&format!("task_queues.{name}"), reason));
        if table.exchange.is_none() && table.exchange_type.is_some() {
            return refuse("`exchange_type` needs the name of its `exchange`");
        }
        if table.queue_type == Some(QueueType::Quorum) && table.max_priority.is_some() {
            return refuse("a quorum queue has no `max_priority`");
        }
        let mut arguments = table.arguments.clone();
        if table.queue_type == Some(QueueType::Classic) {
            // Said for a virtual host whose queues are of another type by default.
            arguments.insert(TYPE.to_owned(), "classic".into());
        }
        let arguments = self.arguments(table.queue_type.unwrap_or_default(), table.max_priority, arguments);
        Ok(Queue { bindings: self.bindings(name, table), arguments, ..Queue::named(name) })
    }

    fn bindings(&self, name: &str, table: &QueueTable) -> Vec<Binding> {
        let kind = table.exchange_type.unwrap_or_default().into();
        let named = table.exchange.as_ref().map(|exchange| Exchange { name: exchange.clone(), kind });
        let own = match named {
            None if !table.bindings.is_empty() => None,
            named => Some(Binding {
                exchange: named.unwrap_or_else(|| self.default_exchange()),
                routing_key: table.routing_key.clone().unwrap_or_else(|| name.to_owned()),
                arguments: Headers::new(),
            }),
        };
        own.into_iter().chain(table.bindings.iter().map(BindingTable::binding)).collect()
    }

    /// `arguments`, with a type and a priority unless they are there.
    fn arguments(&self, kind: QueueType, max_priority: Option<u8>, mut arguments: Headers) -> Headers {
        match kind {
            QueueType::Quorum => {
                arguments.entry(TYPE).or_insert("quorum".into());
            }
            QueueType::Classic => {}
        }
        // RabbitMQ refuses a quorum queue that has one.
        let is_quorum = arguments.get(TYPE).is_some_and(|kind| kind == "quorum");
        let max_priority = max_priority.or(self.task_queue_max_priority.map(u8::from));
        if let Some(priority) = max_priority.filter(|_| !is_quorum) {
            arguments.entry(MAX_PRIORITY).or_insert(priority.into());
        }
        arguments
    }
}

impl TaskQueues {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn get(&self, name: &str) -> Option<&Option<QueueTable>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, table)| table)
    }
}

impl From<Names> for TaskQueues {
    fn from(names: Names) -> Self {
        Self(names.0.into_iter().map(|name| (name, None)).collect())
    }
}

impl BindingTable {
    fn binding(&self) -> Binding {
        let Self { exchange, exchange_type, routing_key, arguments } = self;
        let exchange = Exchange { name: exchange.clone(), kind: (*exchange_type).into() };
        Binding { exchange, routing_key: routing_key.clone(), arguments: arguments.clone() }
    }
}

impl From<ExchangeType> for ExchangeKind {
    fn from(kind: ExchangeType) -> Self {
        match kind {
            ExchangeType::Direct => Self::Direct,
            ExchangeType::Topic => Self::Topic,
            ExchangeType::Fanout => Self::Fanout,
            ExchangeType::Headers => Self::Headers,
        }
    }
}

impl<'de> Deserialize<'de> for TaskQueues {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ListOrTables;

        impl<'de> Visitor<'de> for ListOrTables {
            type Value = TaskQueues;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names, names with commas between them, or a table for each queue")
            }

            fn visit_str<E>(self, text: &str) -> Result<TaskQueues, E> {
                let Ok(names) = text.parse::<Names>();
                Ok(names.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TaskQueues, A::Error> {
                let mut names = Names::default();
                while let Some(name) = list.next_element()? {
                    names.add(name);
                }
                Ok(names.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut tables: A) -> Result<TaskQueues, A::Error> {
                let mut queues = Vec::new();
                while let Some((name, table)) = tables.next_entry()? {
                    queues.push((name, Some(table)));
                }
                Ok(TaskQueues(queues))
            }
        }

        from.deserialize_any(ListOrTables)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(text: &str) -> Settings {
        toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn names(queues: &[Queue]) -> Vec<&str> {
        queues.iter().map(|queue| queue.name.as_str()).collect()
    }

    fn refusal(text: &str) -> String {
        settings(text).queues(None, None).unwrap_err().to_string()
    }

    #[test]
    fn a_worker_consumes_what_is_chosen_or_known_and_not_excluded() {
        let rows = [
            ("", None, None, vec!["celery"]),
            ("task_default_queue = 'mine'", None, None, vec!["mine"]),
            ("task_queues = ['b', 'a', 'b']", None, None, vec!["b", "a"]),
            ("task_queues = 'b, a'", None, None, vec!["b", "a"]),
            ("[task_queues]\nb = {}\na = {}", None, None, vec!["b", "a"]),
            ("task_queues = ['a', 'b']", Some("c"), None, vec!["c"]),
            ("task_queues = ['a', 'b']", None, Some("a,x"), vec!["b"]),
            ("", Some("a,b,c"), Some("b"), vec!["a", "c"]),
        ];
        for (text, chosen, excluded, expected) in rows {
            let read = |names: Option<&str>| names.map(|names| names.parse::<Names>().unwrap());
            let queues = settings(text).queues(read(chosen).as_ref(), read(excluded).as_ref()).unwrap();
            assert_eq!(names(&queues), expected, "{text} {chosen:?} {excluded:?}");
        }
        let none = Settings::default().queues(None, Some(&"celery".parse().unwrap()));
        assert!(matches!(none, Err(SettingsError::NoQueue)));
    }

    #[test]
    fn a_queue_of_which_only_the_name_is_known_is_made_as_celery_makes_it() {
        assert_eq!(Settings::default().queue("celery").unwrap(), Queue::named("celery"));
        assert_eq!(Settings::default().queue("other").unwrap(), Queue::named("other"));
        assert_eq!(settings("task_queues = ['a']").queue("a").unwrap(), Queue::named("a"));
        let quorum = settings("task_create_missing_queue_type = 'quorum'\ntask_queue_max_priority = 10");
        let arguments = |name: &str| serde_json::Value::from(quorum.queue(name).unwrap().arguments);
        assert_eq!(arguments("other"), json!({ "x-queue-type": "quorum" }));
        assert_eq!(arguments("celery"), json!({ "x-max-priority": 10 }));
    }

    #[test]
    fn the_default_queue_is_what_its_settings_say() {
        let text = "task_default_queue = 'q'\ntask_default_exchange = 'e'\ntask_default_exchange_type = 'topic'\n\
                    task_default_routing_key = 'k.#'\ntask_default_queue_type = 'quorum'";
        let queue = settings(text).queue("q").unwrap();
        assert_eq!(serde_json::Value::from(queue.arguments), json!({ "x-queue-type": "quorum" }));
        let exchange = Exchange { name: "e".into(), kind: ExchangeKind::Topic };
        assert_eq!(queue.bindings, [Binding { exchange, routing_key: "k.#".into(), arguments: Headers::new() }]);
    }

    #[test]
    fn a_table_says_how_its_queue_is_bound_and_declared() {
        let text = r#"
            [task_queues.plain]
            [task_queues.video]
            exchange = "media"
            exchange_type = "topic"
            routing_key = "video.#"
            max_priority = 5
            arguments = { x-message-ttl = 60000 }
            [task_queues.both]
            queue_type = "quorum"
            bindings = [
                { exchange = "news", exchange_type = "fanout" },
                { exchange = "kinds", exchange_type = "headers", arguments = { x-match = "all", kind = "a" } },
            ]
        "#;
        let settings = settings(text);
        let bound = |name: &str| -> Vec<(String, ExchangeKind, String)> {
            let bindings = settings.queue(name).unwrap().bindings.into_iter();
            bindings.map(|binding| (binding.exchange.name, binding.exchange.kind, binding.routing_key)).collect()
        };
        assert_eq!(bound("plain"), [("celery".into(), ExchangeKind::Direct, "plain".into())]);
        assert_eq!(bound("video"), [("media".into(), ExchangeKind::Topic, "video.#".into())]);
        assert_eq!(
            bound("both"),
            [("news".into(), ExchangeKind::Fanout, "".into()), ("kinds".into(), ExchangeKind::Headers, "".into())]
        );
        let video = settings.queue("video").unwrap().arguments;
        assert_eq!(serde_json::Value::from(video), json!({ "x-message-ttl": 60000, "x-max-priority": 5 }));
        let both = settings.queue("both").unwrap();
        assert_eq!(serde_json::Value::from(both.arguments), json!({ "x-queue-type": "quorum" }));
        assert_eq!(both.bindings[1].arguments["x-match"], "all");
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused_by_its_name() {
        let rows = [
            ("[task_queues.a]\nexchange_type = 'topic'", "`exchange_type`"),
            ("[task_queues.a]\nqueue_type = 'quorum'\nmax_priority = 5", "quorum"),
        ];
        for (text, reason) in rows {
            let refusal = refusal(text);
            assert!(refusal.contains("task_queues.a") && refusal.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn no_queue_is_made_up_where_that_is_forbidden() {
        let settings = settings("task_create_missing_queues = false\ntask_queues = ['a']");
        assert!(settings.queue("a").is_ok());
        assert!(matches!(settings.queue("b"), Err(SettingsError::UnknownQueue(name)) if name == "b"));
        let alone = Settings { task_create_missing_queues: false, ..Settings::default() };
        assert!(alone.queue("celery").is_ok());
    }

    #[test]
    fn each_worker_has_a_queue_of_its_own() {
        let queue = Settings::default().direct_queue("w1@host1");
        assert_eq!((queue.name.as_str(), queue.bindings[0].routing_key.as_str()), ("w1@host1.dq2", "w1@host1"));
        assert_eq!(queue.bindings[0].exchange.name, "C.dq2");
    }
}
