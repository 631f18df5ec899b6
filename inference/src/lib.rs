//! Language models run in process, to judge lossy deltas by behaviour.
