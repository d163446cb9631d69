//! The loop against made-up looks, and against a server that is modelled.

use super::*;
use proptest::prelude::*;

const TARGETS: Targets = Targets { slowdown: 1.25, lag_s: 5.0, floor: 1e6 };

/// A look at busy clients that use what is allowed.
fn at(controller: &Controller, slowdown: f64) -> Seen {
    Seen {
        statements: Some(100.0),
        knows_rest: true,
        slowdown: Some(slowdown),
        used: controller.order().rate,
        ceiling: f64::INFINITY,
        ..Seen::default()
    }
}

/// One that has measured what statements take at rest.
fn begun() -> Controller {
    let mut controller = Controller::new(TARGETS);
    let rested = Seen { slowdown: None, ..at(&controller, 1.0) };
    assert!(!controller.look(&rested).rest);
    controller
}

#[test]
fn it_rests_until_it_is_known_what_statements_take_but_not_for_ever() {
    let mut controller = Controller::new(TARGETS);
    let asks = Seen { statements: Some(3.0), ceiling: f64::INFINITY, ..Seen::default() };
    let rests: Vec<bool> = (0..5).map(|_| controller.look(&asks).rest).collect();
    assert_eq!(rests, [true, true, true, false, false]);
}

#[test]
fn without_clients_only_the_cap_holds() {
    let nobody = Seen { statements: Some(0.0), ceiling: 5e7, ..Seen::default() };
    let mut controller = Controller::new(TARGETS);
    let order = controller.look(&nobody);
    assert_eq!((order.rest, order.rate), (false, 5e7));
    let order = controller.look(&nobody);
    assert_eq!((order.rate, order.limit), (5e7, Limit::Cap));
    assert_eq!(controller.look(&Seen { ceiling: f64::INFINITY, ..nobody }).rate, f64::INFINITY);
    // Clients come: their statements at rest are measured, and what is allowed is what is used.
    let order = controller.look(&Seen { statements: Some(50.0), used: 8e7, ceiling: f64::INFINITY, ..Seen::default() });
    assert_eq!((order.rest, order.rate), (true, 1.6e8));
}

#[test]
fn it_grows_quickly_at_first_and_slowly_once_somebody_has_suffered() {
    let mut controller = begun();
    assert_eq!(controller.order().rate, START);
    assert_eq!(controller.look(&at(&controller, 1.0)).rate, START * 1.5);
    assert_eq!(controller.look(&at(&controller, 1.1)).rate, START * 2.25);
    assert_eq!(controller.look(&at(&controller, 1.2)).rate, START * 2.25, "near the target it stays");
    let order = controller.look(&at(&controller, 2.5));
    assert_eq!((order.rate, order.slower, order.limit), (START * 2.25 * 0.5, true, Limit::Clients));
    for _ in 0..2 {
        assert_eq!(controller.look(&at(&controller, 2.5)).rate, START * 2.25 * 0.5, "it takes effect first");
    }
    assert_eq!(controller.look(&at(&controller, 2.5)).rate, START * 2.25 * 0.25);
    let before = controller.order().rate;
    let order = controller.look(&at(&controller, 1.0));
    assert_eq!((order.rate, order.limit), (before + STEP, Limit::Nothing));
}

#[test]
fn what_is_not_used_does_not_grow() {
    let mut controller = begun();
    let slow = Seen { used: 1e6, ..at(&controller, 1.0) };
    assert_eq!(controller.look(&slow).rate, START);
    assert_eq!(
        controller.look(&Seen { slowdown: Some(1.3), ..slow }).rate,
        1e6,
        "what was used is decreased, to the floor"
    );
}

#[test]
fn lag_and_what_the_slot_keeps_back_count_too() {
    let mut controller = begun();
    let order = controller.look(&Seen { lag_s: 6.0, ..at(&controller, 1.0) });
    assert_eq!((order.rate, order.limit), (START * 0.5, Limit::Lag));
    let mut controller = begun();
    let order = controller.look(&Seen { backlog: 0.6, ..at(&controller, 3.0) });
    assert_eq!((order.rate, order.slower), (START, false), "the log would be lost and the copy begin again");
}

#[test]
fn it_rests_now_and_then_while_there_are_clients() {
    let mut controller = begun();
    let mut rested = Vec::new();
    for n in 0..100 {
        if controller.look(&at(&controller, 1.0)).rest {
            rested.push(n);
        }
    }
    assert_eq!(rested, [29, 60, 91]);
}

#[test]
fn a_server_with_a_knee_is_held_at_it() {
    // Statements take their time until the copy takes 30 MB/s, and then more and more.
    let slowdown = |rate: f64| 1.0 + (rate - 30e6).max(0.0) / 20e6;
    let mut controller = begun();
    let mut last = Vec::new();
    for n in 0..400 {
        let seen = at(&controller, slowdown(controller.order().rate));
        let order = controller.look(&seen);
        if n > 100 && !order.rest {
            last.push(order.rate);
        }
    }
    let mean = last.iter().sum::<f64>() / last.len() as f64;
    assert!((28e6..36e6).contains(&mean), "{mean}");
    assert!(last.iter().all(|rate| slowdown(*rate) < 1.3), "{last:?}");
}

proptest! {
    #[test]
    fn whatever_is_seen_the_pace_stays_between_floor_and_ceiling(
        looks in prop::collection::vec(
            (prop::option::of(0.0f64..1e4), any::<bool>(), prop::option::of(0.1f64..10.0), 0.0f64..20.0, 0.0f64..2.0, 0.0f64..1e9, 1e5f64..1e9),
            1..200,
        ),
    ) {
        let mut controller = Controller::new(TARGETS);
        let mut rests = 0;
        for (statements, knows_rest, slowdown, lag_s, backlog, used, ceiling) in looks {
            let seen = Seen { statements, knows_rest, slowdown, lag_s, backlog, used, ceiling };
            let before = controller.order();
            let order = controller.look(&seen);
            if !before.rest {
                prop_assert!(order.rate >= TARGETS.floor.min(ceiling) && order.rate <= ceiling, "{order:?}");
                let suffers = lag_s > TARGETS.lag_s || slowdown.is_some_and(|s| s > TARGETS.slowdown) && backlog < HURRY;
                prop_assert!(!suffers || order.rate <= before.rate.max(TARGETS.floor), "faster though somebody suffers");
            }
            rests = if order.rest { rests + 1 } else { 0 };
            prop_assert!(rests <= LONGEST_REST, "it rests for ever");
        }
    }
}
