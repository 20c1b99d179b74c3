//! Which contract with guests this is: sdk/wit/task.wit.

/// The contract's text.
pub(crate) const TEXT: &str = include_str!("../../../sdk/wit/task.wit");
/// Its version, as in its `package` line.
pub(crate) const VERSION: &str = "0.2.0";
/// The interface that makes a component a module, without its version.
pub(crate) const HANDLER: &str = "rtask:task/handler";

/// The handler's name as components of this version export it.
pub(crate) fn handler() -> String {
    format!("{HANDLER}@{VERSION}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_one_that_the_contract_names() {
        assert!(super::TEXT.contains(&format!("package rtask:task@{};", super::VERSION)));
    }
}
