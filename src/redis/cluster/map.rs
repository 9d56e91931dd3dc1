//! Which node serves which slot, as far as it is known: asked of several nodes, and mended by what they refuse.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ::redis::{RedisError, RedisResult};

use super::super::node::{Limits, Node};
use super::super::settings::{Address, Settings};
use super::super::slots::{Range, SLOTS, ranges};
use super::super::votes::{most, told_by};
use crate::telemetry::metrics;

/// Nodes that are asked at the most.
const MOST_ASKED: usize = 12;
/// No node.
const NONE: u16 = u16::MAX;

/// Who serves what.
#[derive(Clone, Debug)]
pub(super) struct Map {
    /// Counts the maps.
    generation: u64,
    nodes: Vec<Arc<Node>>,
    /// For each slot the place of its node among `nodes`.
    slots: Arc<[u16]>,
}

impl Map {
    pub(super) fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    pub(super) fn node_of(&self, slot: u16) -> Option<&Arc<Node>> {
        self.nodes.get(usize::from(*self.slots.get(usize::from(slot))?))
    }

    /// How many slots have a node.
    pub(super) fn served(&self) -> usize {
        self.slots.iter().filter(|node| **node != NONE).count()
    }
}

/// The map at hand, and how it is found.
#[derive(Debug)]
pub(super) struct Known {
    settings: Settings,
    limits: Limits,
    map: RwLock<Option<Map>>,
    /// Every node that was heard of lately, by its address.
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    /// Held while nodes are asked.
    asking: tokio::sync::Mutex<()>,
}

impl Known {
    pub(super) fn new(settings: Settings, limits: Limits) -> Self {
        Self {
            settings,
            limits,
            map: RwLock::default(),
            nodes: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        }
    }

    /// The map at hand; the first one is asked for.
    pub(super) async fn get(&self) -> RedisResult<Map> {
        match self.current() {
            Some(map) if map.nodes.iter().any(|node| node.is_suspect()) => {
                let next = self.ask(Some(map.generation)).await?;
                for node in &map.nodes {
                    node.absolve();
                }
                Ok(next)
            }
            Some(map) => Ok(map),
            None => self.ask(None).await,
        }
    }

    /// Asks for a map that is newer than `seen`, unless somebody has just found one.
    pub(super) async fn refresh(&self, seen: &Map) -> RedisResult<()> {
        self.ask(Some(seen.generation)).await.map(drop)
    }

    /// Asks for the map as it is now.
    pub(super) async fn anew(&self) -> RedisResult<Map> {
        let seen = self.current().map(|map| map.generation);
        self.ask(seen).await
    }

    /// The node at an address.
    pub(super) fn node(&self, address: &Address) -> RedisResult<Arc<Node>> {
        let mut nodes = self.nodes();
        if let Some(node) = nodes.get(address) {
            return Ok(Arc::clone(node));
        }
        let node = Arc::new(Node::new(self.settings.server(address)?, self.limits)?);
        nodes.insert(address.clone(), Arc::clone(&node));
        Ok(node)
    }

    /// The node at `host:port`, if it is known.
    pub(super) fn node_at(&self, address: &str) -> Option<Arc<Node>> {
        self.nodes()
            .values()
            .find(|node| node.address() == address)
            .cloned()
    }

    /// Notes that a node sent us to `address` for `slot`, and answers the node there.
    pub(super) fn moved(&self, slot: u16, address: &Address) -> RedisResult<Arc<Node>> {
        let node = self.node(address)?;
        let mut current = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = current.as_mut()
            && !map.node_of(slot).is_some_and(|known| Arc::ptr_eq(known, &node))
            && usize::from(slot) < SLOTS
        {
            let at = map
                .nodes
                .iter()
                .position(|known| Arc::ptr_eq(known, &node))
                .unwrap_or_else(|| {
                    metrics().redis_failovers.increment(1);
                    map.nodes.push(Arc::clone(&node));
                    map.nodes.len() - 1
                });
            let mut slots = map.slots.to_vec();
            slots[usize::from(slot)] = at as u16;
            map.slots = slots.into();
            map.generation += 1;
        }
        Ok(node)
    }

    fn current(&self) -> Option<Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<Address, Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks nodes for the map. What most of those that answer say is taken: one that was cut off says what was before.
    async fn ask(&self, seen: Option<u64>) -> RedisResult<Map> {
        let _asking = self.asking.lock().await;
        if let Some(map) = self.current().filter(|map| Some(map.generation) != seen) {
            return Ok(map);
        }
        let asked = self.to_ask()?;
        let (said, mut reasons) = most(asked.iter().map(|node| ask_one(node))).await;
        match said {
            Some(ranges) => self.take(&ranges),
            None => Err(reasons.pop().unwrap_or_else(nobody)),
        }
    }

    /// The nodes that are known, and those of the configuration.
    fn to_ask(&self) -> RedisResult<Vec<Arc<Node>>> {
        let mut asked: Vec<Arc<Node>> = self
            .current()
            .map(|map| map.nodes)
            .unwrap_or_default()
            .into_iter()
            .take(MOST_ASKED)
            .collect();
        for address in self.settings.addresses().iter().take(MOST_ASKED) {
            let node = self.node(address)?;
            if !asked.iter().any(|known| Arc::ptr_eq(known, &node)) {
                asked.push(node);
            }
        }
        Ok(asked)
    }

    fn take(&self, ranges: &[Range]) -> RedisResult<Map> {
        let mut nodes: Vec<(Address, Arc<Node>)> = Vec::new();
        let mut slots = vec![NONE; SLOTS];
        for (first, last, address) in ranges {
            let known = nodes.iter().position(|(known, _)| known == address);
            let at = known.unwrap_or(nodes.len());
            if known.is_none() {
                nodes.push((address.clone(), self.node(address)?));
            }
            slots[usize::from(*first)..=usize::from(*last)].fill(at as u16);
        }
        // Those that are gone are forgotten; seeds are made again when they are asked.
        *self.nodes() = nodes.iter().cloned().collect();
        let mut current = self.map.write().unwrap_or_else(PoisonError::into_inner);
        let map = Map {
            generation: current.as_ref().map_or(0, |map| map.generation + 1),
            nodes: nodes.into_iter().map(|(_, node)| node).collect(),
            slots: slots.into(),
        };
        if let Some(before) = current.as_ref()
            && map
                .nodes
                .iter()
                .any(|node| !before.nodes.iter().any(|known| Arc::ptr_eq(known, node)))
        {
            metrics().redis_failovers.increment(1);
            let addresses: Vec<String> = map.nodes.iter().map(|node| node.address()).collect();
            tracing::info!(
                primaries = addresses.join(","),
                "Redis has another primary, say the nodes"
            );
        }
        *current = Some(map.clone());
        Ok(map)
    }
}

/// Who a node is, and what it says.
async fn ask_one(node: &Node) -> RedisResult<(String, Vec<Range>)> {
    let question = ::redis::cmd("CLUSTER").arg("SLOTS").clone();
    let (voter, answer) = told_by(node, &question, "CLUSTER").await?;
    Ok((voter, ranges(answer, &node.host()).ok_or_else(nobody)?))
}

fn nobody() -> RedisError {
    let text = "no node tells which slots are where";
    std::io::Error::new(std::io::ErrorKind::NotConnected, text).into()
}
