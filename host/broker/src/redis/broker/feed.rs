//! Receiving: claim what waits, hand it out, and wait for more.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    claim::{BATCH, Claim, Claimed, ClaimedMessage, Share},
    settle::{RedisReceipt, Room, Settler},
    unacked::Unacked,
    watch::{Change, Watch, Watched},
};
use crate::{BrokerError, Delivery, Routing, backoff::Backoff};

/// So many queues are asked about by one claim at most.
const LANES: usize = 64;
/// Queues that are watched are looked at so often all the same, in case a change was not told, and the connection with
/// them.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Who was told of a message that another had taken watches its queue again after so long, and twice as long after
/// each further time: all who are idle are told of each message, and one of them gets it.
const SHORTEST_REST: Duration = Duration::from_millis(1);
const LONGEST_REST: Duration = Duration::from_millis(16);

/// What becomes of what is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It is held until it is settled.
    Held,
    /// It is forgotten when it is handed out.
    Settled,
}

/// What feeds one consumer.
pub(super) struct Feed {
    settler: Settler,
    manner: Manner,
    lanes: Vec<Lane>,
    /// The lanes, the one that was served last at the end (`kombu/utils/scheduling.py`, `round_robin_cycle`).
    cycle: Vec<usize>,
    /// Which lane a key belongs to.
    by_key: HashMap<Vec<u8>, usize>,
    watch: Watch,
    freed: Arc<Notify>,
    deliveries: mpsc::Sender<Delivery>,
    over: CancellationToken,
    /// A claim that was not answered yet, and what was asked of which lanes.
    asked: Option<(Claim, Vec<Asked>)>,
    /// How long to rest before watching again.
    rest: Duration,
}

/// One queue.
struct Lane {
    queue: Arc<str>,
    lists: Vec<String>,
    /// Where its messages are put aside.
    aside: String,
    room: Arc<Room>,
    state: State,
    /// What is due next of those, by the server's clock and by ours.
    first_aside: Option<i64>,
    due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is to be claimed from.
    Unknown,
    /// There was nothing in it.
    Empty,
    /// There was nothing in it, and we are told when that changes.
    Watched,
    /// There is no room for what may be in it.
    Full,
}

#[derive(Clone, Copy)]
struct Asked {
    lane: usize,
    room: usize,
}

impl Feed {
    /// `prefetch` is each queue's, 0 for any number.
    pub fn new(
        settler: &Settler,
        manner: Manner,
        queues: &[String],
        prefetch: u16,
        deliveries: mpsc::Sender<Delivery>,
        over: CancellationToken,
    ) -> Self {
        let unacked = &settler.unacked;
        let freed = Arc::new(Notify::new());
        let lanes: Vec<Lane> = queues.iter().map(|queue| Lane::new(unacked, queue, prefetch, &freed)).collect();
        let by_key = lanes.iter().enumerate().flat_map(|(index, lane)| {
            lane.lists.iter().chain([&lane.aside]).map(move |key| (key.clone().into_bytes(), index))
        });
        Self {
            settler: settler.clone(),
            manner,
            cycle: (0..lanes.len()).collect(),
            by_key: by_key.collect(),
            lanes,
            watch: Watch::new(unacked.link.address().clone()),
            freed,
            deliveries,
            over,
            asked: None,
            rest: Duration::ZERO,
        }
    }

    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        while !self.over.is_cancelled() {
            match self.advance().await {
                Ok(()) => backoff = Backoff::default(),
                Err(error) if error.is_permanent() => {
                    tracing::error!(%error, "the consumer is given up");
                    break;
                }
                Err(error) => {
                    let pause = backoff.pause();
                    tracing::warn!(%error, ?pause, "receiving again");
                    let _ = self.over.clone().run_until_cancelled(sleep(pause)).await;
                    self.apply(Change::Everything);
                }
            }
        }
        self.finish().await;
    }

    /// Claim, if anything may be there; else watch what is not watched; else wait.
    async fn advance(&mut self) -> Result<(), BrokerError> {
        while let Some(change) = self.watch.told() {
            self.apply(change);
        }
        self.look_at_lanes();
        if self.asked.is_none() {
            self.asked = self.plan();
        }
        if self.asked.is_some() {
            return self.claim().await;
        }
        match self.watch_empty_lanes().await? {
            true => Ok(()),
            false => {
                self.wait().await;
                Ok(())
            }
        }
    }

    /// A full lane with room again is to be claimed from.
    fn look_at_lanes(&mut self) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.state == State::Full && lane.room.left() > 0) {
            lane.state = State::Unknown;
        }
    }

    /// Whom to ask for how much; nobody if there is nothing to ask for.
    fn plan(&mut self) -> Option<(Claim, Vec<Asked>)> {
        let now = Instant::now();
        let mut asked = Vec::new();
        for &index in &self.cycle {
            let lane = &mut self.lanes[index];
            let room = lane.room.left().min(BATCH);
            if lane.state == State::Unknown && room == 0 {
                lane.state = State::Full;
            }
            let is_due = lane.due.is_some_and(|due| due <= now);
            if (lane.state == State::Unknown || is_due) && asked.len() < LANES {
                asked.push(Asked { lane: index, room });
            }
        }
        let claim = Claim { number: self.settler.unacked.next_claim(), is_repeated: false };
        (!asked.is_empty()).then_some((claim, asked))
    }

    /// Ask for what was planned, and hand it out. If there is no answer, the same is asked for again the next time.
    async fn claim(&mut self) -> Result<(), BrokerError> {
        let Some((claim, asked)) = &mut self.asked else { return Ok(()) };
        let shares: Vec<Share<'_>> =
            asked.iter().map(|asked| Share { queue: &self.lanes[asked.lane].queue, room: asked.room }).collect();
        let answer = self.settler.unacked.claim(claim, &shares, BATCH).await;
        claim.is_repeated = true;
        let claimed = answer?;
        let asked = self.asked.take().map(|(_, asked)| asked).unwrap_or_default();
        self.note(&asked, &claimed);
        let lanes: Vec<usize> = claimed.messages.iter().map(|message| asked[message.queue].lane).collect();
        self.rotate(&lanes);
        self.hand_out(claimed.messages, &lanes).await
    }

    /// What an answer tells of the lanes.
    fn note(&mut self, asked: &[Asked], claimed: &Claimed) {
        let now = Instant::now();
        for (share, &Asked { lane, room }) in asked.iter().enumerate() {
            let found = claimed.messages.iter().filter(|message| message.queue == share).count();
            let lane = &mut self.lanes[lane];
            let due = claimed.due.get(share).copied().flatten();
            lane.first_aside = due.map(|due| due.score);
            lane.due = due.map(|due| now + due.after);
            lane.state = match (claimed.is_bounded, found >= room) {
                // With no room left it is found to be full the next time.
                (true, _) | (_, true) => State::Unknown,
                (false, false) => State::Empty,
            };
        }
        if !claimed.messages.is_empty() {
            self.rest = Duration::ZERO;
        }
    }

    /// Whoever was served goes to the end.
    fn rotate(&mut self, served: &[usize]) {
        if self.cycle.len() < 2 {
            return;
        }
        for &lane in served {
            self.cycle.retain(|&other| other != lane);
            self.cycle.push(lane);
        }
    }

    async fn hand_out(&mut self, messages: Vec<ClaimedMessage>, lanes: &[usize]) -> Result<(), BrokerError> {
        let (settler, manner) = (self.settler.clone(), self.manner);
        // All are made before any is waited for, so that each goes back if there is nobody to take it.
        let made = messages.into_iter().zip(lanes).map(|(message, &lane)| {
            let Lane { queue, room, .. } = &self.lanes[lane];
            delivery(message, queue.clone(), &settler, (manner == Manner::Held).then(|| room.take()))
        });
        let made: Vec<Delivery> = made.collect();
        for mut delivery in made {
            if manner == Manner::Settled {
                delivery = forgotten(delivery).await?;
            }
            let room = tokio::select! {
                biased;
                () = self.over.cancelled() => return Ok(()),
                room = self.deliveries.reserve() => room,
            };
            let Ok(room) = room else { return Ok(()) };
            room.send(delivery);
        }
        Ok(())
    }

    /// Answers whether one of them has changed since it was found empty.
    async fn watch_empty_lanes(&mut self) -> Result<bool, BrokerError> {
        if !self.lanes.iter().any(|lane| lane.state == State::Empty) {
            return Ok(false);
        }
        let _ = self.over.clone().run_until_cancelled(sleep(self.rest)).await;
        let empty = self.lanes.iter().filter(|lane| lane.state == State::Empty);
        let watched =
            empty.map(|lane| Watched { lists: &lane.lists, aside: &lane.aside, first_aside: lane.first_aside });
        let has_changed = self.watch.watch(&watched.collect::<Vec<_>>()).await?;
        let state = if has_changed { State::Unknown } else { State::Watched };
        self.lanes.iter_mut().filter(|lane| lane.state == State::Empty).for_each(|lane| lane.state = state);
        Ok(has_changed)
    }

    async fn wait(&mut self) {
        let look = Instant::now() + LOOK_EVERY;
        let due = self.lanes.iter().filter_map(|lane| lane.due).min().unwrap_or(look);
        tokio::select! {
            biased;
            () = self.over.cancelled() => {}
            change = self.watch.changed() => {
                self.rest = (self.rest * 2).clamp(SHORTEST_REST, LONGEST_REST);
                self.apply(change);
            }
            () = self.freed.notified() => {}
            () = sleep_until(due.min(look)) => {
                let watched = self.lanes.iter_mut().filter(|lane| lane.state == State::Watched);
                let _ = (look <= due).then(|| watched.for_each(|lane| lane.state = State::Empty));
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Everything => self.lanes.iter_mut().for_each(|lane| lane.state = State::Unknown),
            Change::Keys(keys) => {
                for &lane in keys.iter().filter_map(|key| self.by_key.get(key)) {
                    let lane = &mut self.lanes[lane];
                    // Any other is looked at in any case.
                    if lane.state == State::Watched {
                        lane.state = State::Unknown;
                    }
                }
            }
        }
    }

    /// A claim that was not answered may have been carried out: ask once more, and let it all go back.
    async fn finish(&mut self) {
        if self.asked.is_some()
            && let Err(error) = self.claim().await
        {
            tracing::warn!(%error, "what was claimed last goes back only when its lease runs out");
        }
    }
}

impl Lane {
    fn new(unacked: &Unacked, queue: &str, prefetch: u16, freed: &Arc<Notify>) -> Self {
        Self {
            queue: queue.into(),
            lists: unacked.keys.lists(queue),
            aside: unacked.keys.postponed(queue),
            room: Room::new(prefetch, freed.clone()),
            state: State::Unknown,
            first_aside: None,
            due: None,
        }
    }
}

/// Our delivery of what was claimed.
pub(super) fn delivery(
    claimed: ClaimedMessage,
    queue: Arc<str>,
    settler: &Settler,
    place: Option<super::settle::Place>,
) -> Delivery {
    let ClaimedMessage { tag, opened, .. } = claimed;
    let routing = opened.routing.unwrap_or_else(|| Routing { exchange: String::new(), routing_key: queue.to_string() });
    let receipt = RedisReceipt {
        settler: settler.clone(),
        tag,
        queue: queue.clone(),
        routing: routing.clone(),
        expires_at: opened.expires_at,
        _place: place,
    };
    let Routing { exchange, routing_key } = routing;
    Delivery::new(opened.message, queue, opened.attempts, Box::new(receipt)).routed(exchange, routing_key)
}

/// The same without a receipt: it cannot go back any more.
async fn forgotten(delivery: Delivery) -> Result<Delivery, BrokerError> {
    let (message, queue, routing) = (delivery.message.clone(), delivery.queue.clone(), delivery.routing.clone());
    delivery.ack().await?;
    Ok(Delivery::settled(message, queue).routed(routing.exchange, routing.routing_key))
}
