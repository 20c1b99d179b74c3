//! `task_routes`: which tasks go where (`celery/app/routes.py`, `MapRoute`).

use glob::Pattern;
use rtask_broker::{Route, Routes, routes::Rule};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Settings, SettingsError, pairs, queues::ExchangeType};

/// Names or patterns of tasks and where these go, in the order in which they are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TaskRoutes(Vec<(String, RouteTable)>);

/// Where to; a plain text names the queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteTable {
    pub queue: Option<String>,
    pub exchange: Option<String>,
    pub exchange_type: Option<ExchangeType>,
    pub routing_key: Option<String>,
    pub priority: Option<u8>,
}

impl Settings {
    /// Where tasks go that are sent with these settings.
    ///
    /// # Errors
    /// For a pattern that is none, and for a queue that is not known and may not be made.
    pub fn routes(&self) -> Result<Routes, SettingsError> {
        // A name goes before every pattern, as in Celery.
        let (patterns, names): (Vec<_>, Vec<_>) = self.task_routes.0.iter().partition(|(tasks, _)| is_pattern(tasks));
        let rules = names.into_iter().chain(patterns).map(|(tasks, table)| self.rule(tasks, table));
        Ok(Routes {
            rules: rules.collect::<Result<_, _>>()?,
            queues: self.known_queues()?,
            default_queue: self.task_default_queue.clone(),
            default_priority: self.task_default_priority,
        })
    }

    fn rule(&self, tasks: &str, table: &RouteTable) -> Result<Rule, SettingsError> {
        if let Some(queue) = &table.queue {
            self.queue(queue)?;
        }
        let pattern = match is_pattern(tasks) {
            true => Pattern::new(tasks),
            false => Pattern::new(&Pattern::escape(tasks)),
        };
        let wrong = |error: glob::PatternError| format!("`{tasks}` is no pattern: {}", error.msg);
        let tasks = pattern.map_err(|error| SettingsError::invalid("task_routes", wrong(error)))?;
        Ok(Rule { tasks, route: table.clone().into() })
    }
}

/// What has no `*` is a name for Celery.
fn is_pattern(tasks: &str) -> bool {
    tasks.contains('*')
}

impl From<RouteTable> for Route {
    fn from(table: RouteTable) -> Self {
        let RouteTable { queue, exchange, exchange_type, routing_key, priority } = table;
        Self { queue, exchange, exchange_kind: exchange_type.map(Into::into), routing_key, priority }
    }
}

impl<'de> Deserialize<'de> for TaskRoutes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a queue's name, or a table of queue, exchange, exchange_type, routing_key and priority"
        )]
        enum QueueOrTable {
            Queue(String),
            Table(RouteTable),
        }
        let table = |target| match target {
            QueueOrTable::Queue(queue) => RouteTable { queue: Some(queue), ..RouteTable::default() },
            QueueOrTable::Table(table) => table,
        };
        let routes =
            pairs::deserialize(from, "a table of tasks and queues, or text such as `feed.*=feeds,video.*=videos`")?;
        Ok(Self(routes.into_iter().map(|(tasks, target)| (tasks, table(target))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use rtask_broker::{Exchange, ExchangeKind, Target};

    use super::*;

    fn settings(text: &str) -> Settings {
        toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn target(settings: &Settings, task: &str) -> Target {
        settings.routes().unwrap().resolve(task, Route::default()).0
    }

    #[test]
    fn a_name_goes_before_patterns_and_patterns_in_their_order() {
        let table = "[task_routes]\n'z.*' = 'first'\n'*' = 'rest'\n'z.a*' = 'never'\n'z.abc' = 'exact'\n'q?' = 'name'";
        let text = "task_routes = 'z.*=first, *=rest, z.a*=never, z.abc=exact, q?=name'";
        for written in [table, text] {
            let rows = [("z.abc", "exact"), ("z.abd", "first"), ("other", "rest"), ("q?", "name"), ("qq", "rest")];
            for (task, queue) in rows {
                assert_eq!(target(&settings(written), task), Target::Queue(queue.into()), "{task}");
            }
        }
    }

    #[test]
    fn a_table_says_more_than_the_queue() {
        let text = r#"
            task_default_priority = 1
            [task_routes]
            "news.*" = { exchange = "news", exchange_type = "topic", routing_key = "news.all", priority = 7 }
            "slow" = { queue = "slow" }
        "#;
        let routes = settings(text).routes().unwrap();
        let exchange = Exchange { name: "news".into(), kind: ExchangeKind::Topic };
        let news = (Target::Exchange { exchange, routing_key: "news.all".into() }, Some(7));
        assert_eq!(routes.resolve("news.flash", Route::default()), news);
        assert_eq!(routes.resolve("slow", Route::default()), (Target::Queue("slow".into()), Some(1)));
    }

    #[test]
    fn a_route_that_leads_nowhere_is_refused() {
        let rows = [
            ("task_create_missing_queues = false\ntask_queues = ['a']\ntask_routes = 'x=b'", "`b`"),
            ("task_routes = '*[=a'", "task_routes"),
        ];
        for (text, reason) in rows {
            let error = settings(text).routes().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        for text in
            ["task_routes = 'x'", "task_routes = 3", "[task_routes]\nx = 3", "[task_routes]\nx = { priority = 300 }"]
        {
            assert!(toml::from_str::<Settings>(text).is_err(), "{text}");
        }
    }
}
