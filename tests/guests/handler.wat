;; A component with the export that rtask calls, around two functions that are filled in by src/guest.rs.
(component
  (core module $guest
    (memory (export "memory") 2)
    ;; What describe and run answer.
    (data (i32.const 4096) "{manifest}")
    (data (i32.const 32768) "{answer}")
    (global $top (mut i32) (i32.const 65536))

    (func (export "realloc") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
      (global.set $top (i32.add (local.get $at) (local.get $size)))
      (local.get $at))

    ;; A string is a pointer and a length.
    (func (export "describe") (result i32)
      {before-describe}
      (i32.store (i32.const 0) (i32.const 4096))
      (i32.store (i32.const 4) (i32.const {manifest-length}))
      (i32.const 0))

    ;; Case 0 of a result is `ok`.
    (func (export "run") (param i32 i32 i32 i32) (result i32)
      {before-run}
      (i32.store8 (i32.const 16) (i32.const 0))
      (i32.store (i32.const 20) (i32.const 32768))
      (i32.store (i32.const 24) (i32.const {answer-length}))
      (i32.const 16))

    {ballast})
  (core instance $core (instantiate $guest))
  (alias core export $core "memory" (core memory $memory))

  (type $exception (record
    (field "kind" string) (field "module" (option string)) (field "arguments" string)
    (field "traceback" (option string))))
  (type $rejection (record (field "reason" string) (field "requeue" bool)))
  (type $retry (record (field "cause" (option $exception)) (field "options" string)))
  (type $failure (variant
    (case "failed" $exception) (case "retry" $retry) (case "reject" $rejection) (case "ignore")))
  (func $describe (result string)
    (canon lift (core func $core "describe") (memory (core memory $memory))))
  (func $run (param "task" string) (param "payload" string) (result (result string (error $failure)))
    (canon lift (core func $core "run") (memory (core memory $memory)) (realloc (core func $core "realloc"))))

  ;; Types of exported functions must have names; a component around the functions gives them theirs.
  (component $handler
    (type $exception-type (record
      (field "kind" string) (field "module" (option string)) (field "arguments" string)
      (field "traceback" (option string))))
    (import "exception" (type $exception (eq $exception-type)))
    (type $rejection-type (record (field "reason" string) (field "requeue" bool)))
    (import "rejection" (type $rejection (eq $rejection-type)))
    (type $retry-type (record (field "cause" (option $exception)) (field "options" string)))
    (import "retry-request" (type $retry (eq $retry-type)))
    (type $failure-type (variant
      (case "failed" $exception) (case "retry" $retry) (case "reject" $rejection) (case "ignore")))
    (import "failure" (type $failure (eq $failure-type)))
    (import "describe" (func $describe (result string)))
    (import "run" (func $run
      (param "task" string) (param "payload" string) (result (result string (error $failure)))))
    (export $named-exception "exception" (type $exception))
    (export $named-rejection "rejection" (type $rejection))
    (type $named-retry-type (record (field "cause" (option $named-exception)) (field "options" string)))
    (export $named-retry "retry-request" (type $named-retry-type))
    (type $named-failure-type (variant
      (case "failed" $named-exception) (case "retry" $named-retry) (case "reject" $named-rejection)
      (case "ignore")))
    (export $named-failure "failure" (type $named-failure-type))
    (export "describe" (func $describe))
    (export "run" (func $run) (func
      (param "task" string) (param "payload" string) (result (result string (error $named-failure))))))
  (instance $exports (instantiate $handler
    (with "exception" (type $exception))
    (with "rejection" (type $rejection))
    (with "retry-request" (type $retry))
    (with "failure" (type $failure))
    (with "describe" (func $describe))
    (with "run" (func $run))))
  (export "rtask:task/handler@0.2.0" (instance $exports)))
