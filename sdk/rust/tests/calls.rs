//! What callers meet: tasks called by name, with JSON, as the host calls them.

use std::{collections::BTreeMap, fmt};

use rtask::{Context, Error, Value, json, task, testing::dispatch};
use serde::{Deserialize, Serialize};

#[task]
fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[task]
fn nothing() {}

#[task]
fn scale(x: f64, #[default = 2.0] factor: f64, unit: Option<String>, #[default = "none"] note: String) -> String {
    format!("{} {} {note}", x * factor, unit.unwrap_or_default())
}

#[task]
fn several(a: i64, b: i64, c: i64) -> i64 {
    a + b + c
}

#[task]
fn gather(
    first: i64,
    #[args] rest: Vec<i64>,
    #[kwargs] named: BTreeMap<String, Value>,
) -> (i64, Vec<i64>, BTreeMap<String, Value>) {
    (first, rest, named)
}

#[derive(Serialize, Deserialize)]
struct Point {
    x: i64,
    y: i64,
}

#[task]
fn mirror(point: Point) -> Point {
    Point { x: point.y, y: point.x }
}

/// The names of a task's parts must not meet those of the macro.
#[task]
fn context(context: &Context, arguments: i64, result: i64, r#type: i64) -> (String, i64) {
    (context.task().to_owned(), arguments + result + r#type)
}

#[task]
fn parse(text: String) -> Result<i64, std::num::ParseIntError> {
    text.parse()
}

#[task]
fn refuse(how: String) -> Result<(), Error> {
    Err(match &*how {
        "reject" => Error::reject("spam"),
        "requeue" => Error::requeue("later"),
        "ignore" => Error::ignore(),
        _ => Error::new("ValueError").args(("no", 1)),
    })
}

struct Busy(u32);

impl From<Busy> for Error {
    fn from(busy: Busy) -> Self {
        Error::new("Busy").module("shop.errors").args([busy.0])
    }
}

#[task]
fn busy() -> Result<(), Busy> {
    Err(Busy(3))
}

/// An error type that serde can serialise is an error all the same.
#[derive(Debug, Serialize)]
struct Both;

impl fmt::Display for Both {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("both")
    }
}

impl std::error::Error for Both {}

#[task]
fn both() -> Result<i64, Both> {
    Err(Both)
}

type Answer<T> = Result<T, Error>;

#[task]
fn aliased() -> Answer<i64> {
    Err(Error::value_error("by another name"))
}

#[task]
fn no_json() -> BTreeMap<(i64, i64), i64> {
    BTreeMap::from([((1, 2), 3)])
}

#[task]
fn never() -> ! {
    panic!("it does not return")
}

#[task(crate = ::rtask)]
fn elsewhere() -> &'static str {
    "found"
}

fn call(task: &str, args: Value, kwargs: Value) -> Result<Value, Error> {
    let payload = json!({ "args": args, "kwargs": kwargs }).to_string();
    dispatch(&format!("calls.{task}"), &payload).map(|result| serde_json::from_str(&result).unwrap())
}

fn type_error(message: &str) -> Error {
    Error::type_error(message)
}

#[test]
fn arguments_are_passed_by_position_and_by_name() {
    for (args, kwargs) in
        [(json!([2, 3]), json!({})), (json!([2]), json!({"y": 3})), (json!([]), json!({"y": 3, "x": 2}))]
    {
        assert_eq!(call("add", args, kwargs), Ok(json!(5)));
    }
}

#[test]
fn what_is_absent_has_its_default() {
    let rows = [
        (json!([4]), json!({}), "8  none"),
        (json!([4, 3]), json!({}), "12  none"),
        (json!([4, 3, null]), json!({}), "12  none"),
        (json!([4]), json!({"unit": "m", "note": "given"}), "8 m given"),
    ];
    for (args, kwargs, expected) in rows {
        assert_eq!(call("scale", args, kwargs), Ok(json!(expected)));
    }
}

#[test]
fn what_is_left_is_gathered() {
    assert_eq!(call("gather", json!([1]), json!({})), Ok(json!([1, [], {}])));
    assert_eq!(call("gather", json!([1, 2, 3]), json!({"k": [4]})), Ok(json!([1, [2, 3], {"k": [4]}])));
}

/// The words are those of CPython 3.11, and so is the order in which several mistakes are told.
#[test]
fn a_wrong_call_is_answered_as_python_would() {
    let rows = [
        ("add", json!([1]), json!({}), "add() missing 1 required positional argument: 'y'"),
        ("add", json!([]), json!({}), "add() missing 2 required positional arguments: 'x' and 'y'"),
        ("several", json!([]), json!({}), "several() missing 3 required positional arguments: 'a', 'b', and 'c'"),
        ("add", json!([1, 2, 3]), json!({}), "add() takes 2 positional arguments but 3 were given"),
        ("nothing", json!([1]), json!({}), "nothing() takes 0 positional arguments but 1 was given"),
        ("mirror", json!([1, 2]), json!({}), "mirror() takes 1 positional argument but 2 were given"),
        ("scale", json!([1, 2, 3, 4, 5]), json!({}), "scale() takes from 1 to 4 positional arguments but 5 were given"),
        ("add", json!([1, 2]), json!({"z": 3}), "add() got an unexpected keyword argument 'z'"),
        ("add", json!([1, 2]), json!({"x": 3}), "add() got multiple values for argument 'x'"),
        ("add", json!([]), json!({"z": 3}), "add() got an unexpected keyword argument 'z'"),
        ("add", json!([1, 2, 3]), json!({"z": 3}), "add() got an unexpected keyword argument 'z'"),
    ];
    for (task, args, kwargs, message) in rows {
        assert_eq!(call(task, args, kwargs), Err(type_error(message)));
    }
}

#[test]
fn a_wrong_type_is_told_with_the_argument_s_name() {
    let rows = [
        ("add", json!(["a", 1]), json!({}), "add() argument 'x': invalid type: string \"a\", expected i64"),
        ("add", json!([1]), json!({"y": 1.5}), "add() argument 'y': invalid type: floating point `1.5`, expected i64"),
        ("mirror", json!([{"x": 1}]), json!({}), "mirror() argument 'point': missing field `y`"),
        (
            "gather",
            json!([1, 2, "a"]),
            json!({}),
            "gather() argument 'rest[1]': invalid type: string \"a\", expected i64",
        ),
    ];
    for (task, args, kwargs, message) in rows {
        let told = call(task, args, kwargs).unwrap_err().to_string();
        let message = Value::from(message).to_string();
        let start = format!("TypeError({}", message.trim_end_matches('"'));
        assert!(told.starts_with(&start), "{told} should start with {start}");
    }
}

#[test]
fn serde_types_go_in_and_out() {
    assert_eq!(call("mirror", json!([{"x": 1, "y": 2}]), json!({})), Ok(json!({"x": 2, "y": 1})));
    assert_eq!(call("nothing", json!([]), json!({})), Ok(Value::Null));
}

#[test]
fn the_context_is_no_argument() {
    assert_eq!(call("context", json!([1, 2]), json!({"type": 3})), Ok(json!(["test", 6])));
}

#[test]
fn errors_choose_what_the_caller_catches() {
    let rows = [
        (
            "parse",
            json!(["7x"]),
            Error::new("ParseIntError").module("core::num::error").args("invalid digit found in string"),
        ),
        ("refuse", json!([""]), Error::new("ValueError").module("builtins").args(("no", 1))),
        ("refuse", json!(["reject"]), Error::reject("spam")),
        ("refuse", json!(["requeue"]), Error::requeue("later")),
        ("refuse", json!(["ignore"]), Error::ignore()),
        ("busy", json!([]), Error::new("Busy").module("shop.errors").args((3,))),
        ("both", json!([]), Error::new("Both").module("calls").args("both")),
        ("aliased", json!([]), Error::value_error("by another name")),
    ];
    for (task, args, expected) in rows {
        assert_eq!(call(task, args, json!({})), Err(expected));
    }
    assert_eq!(call("parse", json!(["7"]), json!({})), Ok(json!(7)));
}

#[test]
fn a_result_that_json_cannot_hold_is_a_type_error() {
    let message = "no_json() returned a value that JSON cannot hold: key must be a string";
    assert_eq!(call("no_json", json!([]), json!({})), Err(type_error(message)));
}

#[test]
fn an_unknown_name_is_not_registered() {
    let expected = Error::new("NotRegistered").module("celery.exceptions").args("calls.absent");
    assert_eq!(call("absent", json!([]), json!({})), Err(expected));
}

#[test]
fn a_payload_that_is_none_is_told_as_such() {
    for payload in ["", "[]", r#"{"args": []}"#, r#"{"args": {}, "kwargs": {}}"#, r#"{"args": [NaN], "kwargs": {}}"#] {
        let told = dispatch("calls.add", payload).unwrap_err().to_string();
        assert!(told.starts_with("DecodeError(\"the payload is not"), "{told}");
    }
}

#[test]
#[should_panic(expected = "it does not return")]
fn a_task_may_never_return() {
    let _ = call("never", json!([]), json!({}));
}

#[test]
fn the_crate_may_be_named_otherwise() {
    assert_eq!(call("elsewhere", json!([]), json!({})), Ok(json!("found")));
}

#[test]
fn a_task_is_still_a_function() {
    assert_eq!(add(2, 2), 4);
}
