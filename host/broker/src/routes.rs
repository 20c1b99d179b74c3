//! Which queue or exchange a task's message goes to: `task_routes` and what stands behind it
//! (`celery/app/routes.py`, `Router`).

use glob::Pattern;

use crate::{Exchange, ExchangeKind, Queue, Target};

/// Where to, as far as somebody said; the rest is found by [`Routes::resolve`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    pub queue: Option<String>,
    pub exchange: Option<String>,
    pub exchange_kind: Option<ExchangeKind>,
    pub routing_key: Option<String>,
    pub priority: Option<u8>,
}

/// A rule of `task_routes`: tasks whose name matches go there.
#[derive(Clone, Debug)]
pub struct Rule {
    /// A name, or a shell pattern such as `feed.*`.
    pub tasks: Pattern,
    pub route: Route,
}

/// Everything that is known about where messages go.
#[derive(Clone, Debug)]
pub struct Routes {
    /// The first rule that matches is taken.
    pub rules: Vec<Rule>,
    /// `task_queues`: a route to one of these goes through its first binding.
    pub queues: Vec<Queue>,
    /// `task_default_queue`, for what no rule and no caller names another.
    pub default_queue: String,
    /// `task_default_priority`.
    pub default_priority: Option<u8>,
}

impl Default for Routes {
    fn default() -> Self {
        let default_queue = rtask_protocol::names::DEFAULT_QUEUE.to_owned();
        Self { rules: Vec::new(), queues: Vec::new(), default_queue, default_priority: None }
    }
}

impl Route {
    pub fn to_queue(queue: impl Into<String>) -> Self {
        Self { queue: Some(queue.into()), ..Self::default() }
    }

    /// What is said here, and what `other` says where nothing is. A queue, an exchange or a key that is named here leaves
    /// nothing of the other's way.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let priority = self.priority.or(other.priority);
        if self.queue.is_some() || self.exchange.is_some() || self.routing_key.is_some() {
            return Self { priority, ..self };
        }
        Self { priority, ..other.clone() }
    }
}

impl Routes {
    /// Where a message of `task` goes when its caller asked for `asked`, and with which priority.
    pub fn resolve(&self, task: &str, asked: Route) -> (Target, Option<u8>) {
        let rule = self.rules.iter().find(|rule| rule.tasks.matches(task));
        let route = rule.map_or_else(|| asked.clone(), |rule| asked.clone().or(&rule.route));
        let priority = route.priority.or(self.default_priority);
        (self.target(route), priority)
    }

    fn target(&self, route: Route) -> Target {
        let Route { queue, exchange, exchange_kind, routing_key, .. } = route;
        if let Some(exchange) = exchange.filter(|exchange| !exchange.is_empty()) {
            let kind = exchange_kind.or_else(|| self.kind_of(&exchange)).unwrap_or_default();
            let routing_key = routing_key.or(queue).unwrap_or_else(|| exchange.clone());
            return Target::Exchange { exchange: Exchange { name: exchange, kind }, routing_key };
        }
        // Celery publishes through the default queue's exchange then; a key that names a queue finds it either way.
        let queue = queue.or(routing_key).unwrap_or_else(|| self.default_queue.clone());
        self.known(&queue).unwrap_or(Target::Queue(queue))
    }

    /// A queue that is bound to an exchange of several readers is reached through that, as they all expect. Celery
    /// sends straight into one that is bound to a direct exchange, whose name and key it leaves aside
    /// (`celery/app/amqp.py`, `_create_task_sender`).
    fn known(&self, queue: &str) -> Option<Target> {
        let known = self.queues.iter().find(|known| known.name == queue)?;
        let binding = known.bindings.first().filter(|binding| binding.exchange.kind != ExchangeKind::Direct)?;
        Some(Target::Exchange { exchange: binding.exchange.clone(), routing_key: binding.routing_key.clone() })
    }

    fn kind_of(&self, exchange: &str) -> Option<ExchangeKind> {
        let bindings = self.queues.iter().flat_map(|queue| &queue.bindings);
        bindings.map(|binding| &binding.exchange).find(|known| known.name == exchange).map(|known| known.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Binding;

    fn routes() -> Routes {
        let rule = |tasks: &str, route| Rule { tasks: Pattern::new(tasks).unwrap(), route };
        let media = Binding {
            exchange: Exchange { name: "media".into(), kind: ExchangeKind::Topic },
            routing_key: "video.#".into(),
            arguments: Default::default(),
        };
        let mut elsewhere = Queue::named("elsewhere");
        elsewhere.bindings[0].exchange.name = "celery".into();
        Routes {
            rules: vec![
                rule("feed.import", Route { priority: Some(9), ..Route::to_queue("imports") }),
                rule("feed.*", Route::to_queue("feeds")),
                rule("video.*", Route::to_queue("videos")),
            ],
            queues: vec![Queue { bindings: vec![media], ..Queue::named("videos") }, elsewhere],
            default_priority: Some(1),
            ..Routes::default()
        }
    }

    fn exchange(name: &str, kind: ExchangeKind, routing_key: &str) -> Target {
        Target::Exchange { exchange: Exchange { name: name.into(), kind }, routing_key: routing_key.into() }
    }

    #[test]
    fn the_caller_goes_before_the_first_rule_that_matches() {
        let through = |exchange: &str| Route { exchange: Some(exchange.into()), ..Route::default() };
        let rows = [
            ("other", Route::default(), Target::Queue("celery".into()), Some(1)),
            ("feed.import", Route::default(), Target::Queue("imports".into()), Some(9)),
            ("feed.import", Route::to_queue("mine"), Target::Queue("mine".into()), Some(9)),
            ("feed.export", Route::default(), Target::Queue("feeds".into()), Some(1)),
            ("feed.export", Route { priority: Some(3), ..Route::default() }, Target::Queue("feeds".into()), Some(3)),
            ("video.cut", Route::default(), exchange("media", ExchangeKind::Topic, "video.#"), Some(1)),
            ("other", Route::to_queue("elsewhere"), Target::Queue("elsewhere".into()), Some(1)),
            ("other", through("media"), exchange("media", ExchangeKind::Topic, "media"), Some(1)),
            ("other", through("news"), exchange("news", ExchangeKind::Direct, "news"), Some(1)),
            ("other", through(""), Target::Queue("celery".into()), Some(1)),
        ];
        for (task, asked, target, priority) in rows {
            assert_eq!(routes().resolve(task, asked.clone()), (target, priority), "{task} {asked:?}");
        }
    }
}
