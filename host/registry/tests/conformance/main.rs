//! What holds for every registry ([`deploys`], [`components`], [`workers`]), and what is particular to each store.
//!
//! SQLite needs nothing. Redis is the one that RTASK_TEST_REDIS_URL names; `cargo xtask test` starts it and sets
//! the variable.

mod components;
mod deploys;
mod lab;
mod proxy;
mod redis;
mod sqlite;
mod workers;

/// Each of these for each store.
macro_rules! conformance {
    ($($room:ident::$fact:ident,)+) => {
        mod every {
            $(mod $fact {
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn in_sqlite() {
                    crate::$room::$fact(&crate::lab::Lab::sqlite().await).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn in_redis() {
                    crate::$room::$fact(&crate::lab::Lab::redis().await).await;
                }
            })+
        }
    };
}

conformance! {
    deploys::a_tenant_without_modules_serves_nothing,
    deploys::versions_are_numbered_and_the_last_is_current,
    deploys::a_version_is_remembered_as_it_was_deployed,
    deploys::the_same_again_is_the_same_version,
    deploys::a_taken_name_changes_nothing,
    deploys::a_name_that_was_taken_over_is_served_by_its_new_owner_alone,
    deploys::a_module_without_names_is_not_served,
    deploys::a_name_that_was_given_up_can_be_had,
    deploys::names_that_cannot_be_keys_are_refused,
    deploys::deploys_at_the_same_time_get_numbers_of_their_own,
    deploys::one_of_two_who_claim_a_name_at_the_same_time_gets_it,
    deploys::tenants_do_not_see_each_other,
    deploys::a_deploy_is_noticed_through_another_connection,
    components::ten_mebibytes_come_back_as_they_were,
    components::modules_may_share_a_component,
    components::one_that_was_never_deployed_is_unknown,
    components::damage_is_noticed_and_mended_by_deploying_again,
    components::loss_is_noticed_and_mended_by_deploying_again,
    workers::they_come_change_and_go,
    workers::one_that_says_nothing_any_more_expires,
    workers::a_name_that_is_none_is_refused,
}
