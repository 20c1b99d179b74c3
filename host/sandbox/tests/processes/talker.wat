;; A guest that talks with its host. Which task it is says the first letter of its name.
(module
  (import "rtask:task/context@0.2.0" "sleep" (func $sleep (param i32) (result i32)))
  (import "rtask:task/context@0.2.0" "soft-remaining-ms" (func $soft-remaining-ms (param i32)))
  (import "rtask:task/context@0.2.0" "send" (func $send (param i32 i32 i32)))
  (import "rtask:task/context@0.2.0" "set-state" (func $set-state (param i32 i32 i32 i32)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $subscribe (param i64) (result i32)))
  (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))

  (memory (export "memory") 2)
  (global $next (mut i32) (i32.const 4096))
  (data (i32.const 8) "\10\00\00\00\02\00\00\00")
  (data (i32.const 16) "{}")
  (data (i32.const 32) "MARK")
  (data (i32.const 40) "null")
  (data (i32.const 48) "Busy")
  (data (i32.const 56) "[\"not now\"]")

  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (local.get $at))

  (func (export "rtask:task/handler@0.2.0#describe") (result i32)
    (i32.const 8))

  ;; The state MARK, for whoever waits until the guest is here.
  (func $mark
    (call $set-state (i32.const 32) (i32.const 4) (i32.const 40) (i32.const 4)))

  ;; The case ok with this string.
  (func $answer (param $text i32) (param $length i32) (result i32)
    (i32.store8 (i32.const 1024) (i32.const 0))
    (i32.store (i32.const 1028) (local.get $text))
    (i32.store (i32.const 1032) (local.get $length))
    (i32.const 1024))

  ;; Computes for ever.
  (func $compute
    (call $mark)
    (loop $for_ever (br $for_ever)))

  ;; Sleeps for an hour again and again, and never says how it went.
  (func $wait
    (call $mark)
    (loop $again
      (drop (call $sleep (i32.const 3600000)))
      (call $mark)
      (br $again)))

  ;; Asks how much is left until that is nothing, and computes on.
  (func $listen
    (loop $again
      (call $soft-remaining-ms (i32.const 2048))
      (br_if $again (i32.load (i32.const 2052))))
    (call $compute))

  ;; Sleeps for an hour where no `context` can wake it.
  (func $doze
    (call $block (call $subscribe (i64.const 3600000000000))))

  ;; Sends the same for ever.
  (func $flood (param $payload i32) (param $length i32)
    (loop $again
      (call $send (local.get $payload) (local.get $length) (i32.const 2048))
      (br $again)))

  ;; Sends its payload, and answers or raises what it was answered.
  (func $ask (param $payload i32) (param $length i32) (result i32)
    (call $send (local.get $payload) (local.get $length) (i32.const 2048))
    (if (i32.eqz (i32.load8_u (i32.const 2048)))
      (then (return (call $answer (i32.load (i32.const 2052)) (i32.load (i32.const 2056))))))
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store8 (i32.const 1028) (i32.const 0))
    (memory.copy (i32.const 1032) (i32.const 2052) (i32.const 40))
    (i32.const 1024))

  ;; The case retry, for `Busy`, with the payload as its options.
  (func $retry (param $payload i32) (param $length i32) (result i32)
    (i32.store8 (i32.const 1024) (i32.const 1))
    (i32.store8 (i32.const 1028) (i32.const 1))
    (i32.store8 (i32.const 1032) (i32.const 1))
    (i32.store (i32.const 1036) (i32.const 48))
    (i32.store (i32.const 1040) (i32.const 4))
    (i32.store8 (i32.const 1044) (i32.const 0))
    (i32.store (i32.const 1056) (i32.const 56))
    (i32.store (i32.const 1060) (i32.const 11))
    (i32.store8 (i32.const 1064) (i32.const 0))
    (i32.store (i32.const 1076) (local.get $payload))
    (i32.store (i32.const 1080) (local.get $length))
    (i32.const 1024))

  (func (export "rtask:task/handler@0.2.0#run")
    (param $task i32) (param i32) (param $payload i32) (param $length i32) (result i32)
    (local $is i32)
    (local.set $is (i32.load8_u (local.get $task)))
    (if (i32.eq (local.get $is) (i32.const 0x63 (; c ;))) (then (call $compute)))
    (if (i32.eq (local.get $is) (i32.const 0x77 (; w ;))) (then (call $wait)))
    (if (i32.eq (local.get $is) (i32.const 0x6c (; l ;))) (then (call $listen)))
    (if (i32.eq (local.get $is) (i32.const 0x64 (; d ;))) (then (call $doze)))
    (if (i32.eq (local.get $is) (i32.const 0x66 (; f ;)))
      (then (call $flood (local.get $payload) (local.get $length))))
    (if (i32.eq (local.get $is) (i32.const 0x61 (; a ;)))
      (then (return (call $ask (local.get $payload) (local.get $length)))))
    (if (i32.eq (local.get $is) (i32.const 0x72 (; r ;)))
      (then (return (call $retry (local.get $payload) (local.get $length)))))
    ;; Any other answers its payload.
    (call $answer (local.get $payload) (local.get $length))))
