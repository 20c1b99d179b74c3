//! Names that Celery and rtask must spell alike, and the limits on names from outside.

/// The queue, exchange and routing key of a message for which nobody named another.
pub const DEFAULT_QUEUE: &str = "celery";

/// Where a worker puts a message of `queue` that cannot be run.
pub fn dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dead")
}

/// The key of a task's result in Redis, and the channel on which it is announced
/// (`celery/backends/base.py`, `task_keyprefix`).
pub fn result_key(task_id: &str) -> String {
    format!("celery-task-meta-{task_id}")
}

/// A worker's node name from what `-n` says: `%h` host name, `%n` name part, `%d` domain part, and without an
/// `@` the host's own prefix `celery` (`celery/utils/nodenames.py`, `host_format` and `default_nodename`).
pub fn node_name(pattern: &str, host: &str) -> String {
    let (short, domain) = host.split_once('.').unwrap_or((host, ""));
    let expanded = pattern.replace("%h", host).replace("%n", short).replace("%d", domain).replace("%%", "%");
    match expanded.split_once('@') {
        Some(("", host)) => format!("celery@{host}"),
        Some(_) => expanded,
        None => format!("celery@{expanded}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_follow_celery() {
        let rows = [
            ("w1@%h", "host1.example.org", "w1@host1.example.org"),
            ("%n@%d", "host1.example.org", "host1@example.org"),
            ("other", "host1", "celery@other"),
            ("celery@%h", "host1", "celery@host1"),
            ("@%h", "host1", "celery@host1"),
        ];
        for (pattern, host, expected) in rows {
            assert_eq!(node_name(pattern, host), expected, "{pattern}");
        }
    }
}
