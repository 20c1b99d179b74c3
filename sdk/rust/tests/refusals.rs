//! A module that contradicts itself cannot be described, and so not be deployed.

use rtask::{task, testing::describe};

#[task(name = "same")]
fn one() {}

#[task(name = "same")]
fn other() {}

#[test]
#[should_panic(expected = "two tasks are called `same`")]
fn two_tasks_of_one_name_are_refused() {
    describe();
}

#[test]
fn they_are_functions_all_the_same() {
    one();
    other();
}
