//! Jobs.

use sparse_cache::JobState;

use crate::support::{World, files, runtime};

#[test]
fn jobs_are_run_once_and_told() {
    let world = World::new(3);
    let cache = world.cache(5);
    let runtime = runtime();
    let deltas = [
        world.delta(1),
        world.delta(2),
        world.root.join("nothing").display().to_string(),
    ];
    let jobs = cache.enqueue(&world.base(), &deltas).unwrap();
    assert!(jobs.iter().all(|job| job.state == JobState::Queued));
    assert_eq!(
        cache.enqueue(&world.base(), &deltas[..1]).unwrap()[0],
        jobs[0]
    );
    assert_eq!(cache.get_stats().unwrap().pending_jobs, 3);
    let ended = runtime.block_on(cache.run_jobs()).unwrap();
    assert_eq!(ended.len(), 3);
    let status = |at: usize| cache.get_job_status(&jobs[at].id).unwrap();
    for number in [1, 2] {
        let job = status(number - 1);
        assert_eq!(
            (job.state, job.progress, job.attempts),
            (JobState::Done, 1.0, 1),
            "{job:?}"
        );
        assert_eq!(files(&job.path.unwrap()), files(&world.finetune(number)));
    }
    assert_eq!(status(2).state, JobState::Failed);
    assert!(status(2).message.contains("nothing"), "{:?}", status(2));
    assert!(runtime.block_on(cache.run_jobs()).unwrap().is_empty());
    // Asked for again it is done at once; in the background too.
    let jobs = cache
        .prefetch_deltas(&world.base(), &[world.delta(1), world.delta(3)])
        .unwrap();
    let ids: Vec<String> = jobs.into_iter().map(|job| job.id).collect();
    let jobs = runtime.block_on(cache.wait_for(&ids)).unwrap();
    assert!(
        jobs.iter().all(|job| job.state == JobState::Done),
        "{jobs:?}"
    );
    assert!(jobs[0].message.starts_with("hit"), "{jobs:?}");
    assert!(cache.get_job_status("../x").is_err() && cache.get_job_status("0123").is_err());
}

#[test]
fn jobs_are_cancelled_and_outlive_their_process() {
    let world = World::new(2);
    let cache = world.cache(5);
    let runtime = runtime();
    let jobs = cache
        .enqueue(&world.base(), &[world.delta(1), world.delta(2)])
        .unwrap();
    assert_eq!(
        cache.cancel_job(&jobs[0].id).unwrap().state,
        JobState::Cancelled
    );
    // A process that was killed while it ran the second: the file says running, nobody holds the lock.
    let file = world
        .models()
        .join(format!(".state/jobs/{}.json", jobs[1].id));
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("\"queued\"", "\"running\"");
    std::fs::write(&file, text).unwrap();
    let job = world.cache(5).get_job_status(&jobs[1].id).unwrap();
    assert_eq!(job.state, JobState::Queued);
    assert!(job.message.contains("process ended"), "{job:?}");
    // A process that was asked to stop leaves what it has not done.
    let stopped = sparse_delta::CancelToken::default();
    stopped.cancel();
    assert!(
        runtime
            .block_on(world.cache(5).cancel(stopped).run_jobs())
            .unwrap()
            .is_empty()
    );
    let ended = runtime.block_on(world.cache(5).run_jobs()).unwrap();
    assert_eq!(ended.len(), 1);
    assert_eq!(
        (ended[0].id.as_str(), ended[0].state),
        (jobs[1].id.as_str(), JobState::Done)
    );
    // The cancelled one is done when asked for again.
    cache.enqueue(&world.base(), &[world.delta(1)]).unwrap();
    assert_eq!(
        runtime.block_on(cache.run_jobs()).unwrap()[0].state,
        JobState::Done
    );
}
