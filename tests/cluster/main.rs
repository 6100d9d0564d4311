//! Clusters: the pure state machine, explored exhaustively.

/// Every interleaving of small clusters with a fault at every step.
mod model;
/// A cluster as the explorer sees it.
mod world;
