//! What is said of a run while it goes: progress, logs and event files, to the letter.

use std::{
    fs, io,
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prefopt::{
    Error, Result,
    diagnostics::{Alarm, AlarmKind, Metrics},
    train::{Flow, JsonLines, Observer, Progress, StepReport, TensorBoard},
};

/// What is written, to be read again.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("one thread").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("one thread").clone()
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.bytes()).expect("text").lines().map(str::to_owned).collect()
    }
}

struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn report(step: u64, metrics: Metrics) -> StepReport {
    StepReport { step, loss: 0.5, grad_norm: 1.5, learning_rate: 0.1, metrics }
}

fn alarm() -> Alarm {
    Alarm { kind: AlarmKind::BothFall, signal: "displacement/chosen".into(), step: 2, value: 0.25, threshold: 0.1 }
}

/// A clock that goes on by so many seconds at each look.
fn ticking(seconds: u64) -> impl FnMut() -> Instant + Send + 'static {
    let mut now = Instant::now();
    move || {
        now += Duration::from_secs(seconds);
        now
    }
}

fn at(seconds: f64) -> impl FnMut() -> SystemTime + Send + 'static {
    move || UNIX_EPOCH + Duration::from_secs_f64(seconds)
}

/// Two seconds a step and 100 tokens in each.
#[test]
fn progress_tells_speed_and_time_left() {
    let paper = Paper::default();
    let mut progress = Progress::lines(5, paper.clone()).every(Duration::ZERO).with_clock(ticking(2));
    for step in 1..=5 {
        let metrics = Metrics::default().with("rewards/accuracies", 0.75).with("num_tokens", 100.0);
        assert_eq!(progress.on_step(&report(step, metrics)), Flow::Continue);
    }
    progress.on_end();
    let expected = [
        "step 1/5  loss 0.5000  accuracy 0.750",
        "step 2/5  loss 0.5000  accuracy 0.750  50 tokens/s  6 s left",
        "step 3/5  loss 0.5000  accuracy 0.750  50 tokens/s  4 s left",
        "step 4/5  loss 0.5000  accuracy 0.750  50 tokens/s  2 s left",
        "step 5/5  loss 0.5000  accuracy 0.750  50 tokens/s",
    ];
    assert_eq!(paper.lines(), expected);
}

/// Speeds forget how slow the run was at first.
#[test]
fn progress_measures_the_last_steps() {
    let paper = Paper::default();
    let (mut now, mut step) = (Instant::now(), 0);
    let clock = move || {
        step += 1;
        now += Duration::from_secs(if step <= 10 { 1000 } else { 1 });
        now
    };
    let mut progress = Progress::lines(100, paper.clone()).every(Duration::ZERO).with_clock(clock);
    for step in 1..=60 {
        let _ = progress.on_step(&report(step, Metrics::default()));
    }
    assert_eq!(paper.lines()[1], "step 2/100  loss 0.5000  27 h 13 min left");
    assert_eq!(paper.lines()[59], "step 60/100  loss 0.5000  40 s left");
}

#[test]
fn lines_come_now_and_then_and_at_the_end() {
    let paper = Paper::default();
    let mut progress = Progress::lines(200, paper.clone()).every(Duration::from_secs(150)).with_clock(ticking(60));
    for step in 1..=8 {
        let _ = progress.on_step(&report(step, Metrics::default()));
    }
    progress.on_end();
    progress.on_end();
    let steps: Vec<_> = paper.lines().iter().map(|line| line.split(' ').nth(1).expect("a step").to_owned()).collect();
    assert_eq!(steps, ["1/200", "4/200", "7/200", "8/200"]);
    assert!(paper.lines()[1].ends_with("3 h 16 min left"), "{:?}", paper.lines());
    let mut short = Progress::lines(3, paper.clone()).every(Duration::ZERO).with_clock(ticking(100));
    for step in 1..=2 {
        let _ = short.on_step(&report(step, Metrics::default()));
    }
    assert!(paper.lines()[5].ends_with("1 min 40 s left"), "{:?}", paper.lines());
}

#[test]
fn an_alarm_comes_with_its_remedy() {
    let paper = Paper::default();
    let mut progress = Progress::lines(5, paper.clone());
    assert_eq!(progress.on_alarm(&alarm()), Flow::Continue);
    let [line] = paper.lines().try_into().expect("one line");
    assert!(line.starts_with("step 2: ") && line.ends_with(AlarmKind::BothFall.remedy()), "{line}");
}

#[test]
fn a_line_is_an_object_in_order() {
    let paper = Paper::default();
    let mut log = JsonLines::new(paper.clone(), "log.jsonl").with_clock(at(1.5));
    let metrics = Metrics::default().with("rewards/margins", -0.25).with("logps/chosen", f64::NAN);
    assert_eq!(log.on_step(&report(1, metrics)), Flow::Continue);
    assert_eq!(log.measured(1, &Metrics::default().with("eval_loss", 0.1 + 0.2)), Flow::Continue);
    assert_eq!(log.on_alarm(&alarm()), Flow::Continue);
    let expected = [
        r#"{"step":1,"time":1.5,"loss":0.5,"grad_norm":1.5,"learning_rate":0.1,"rewards/margins":-0.25,"logps/chosen":null}"#,
        r#"{"step":1,"time":1.5,"eval_loss":0.30000000000000004}"#,
        r#"{"step":2,"time":1.5,"alarm":{"kind":"both_fall","signal":"displacement/chosen","step":2,"value":0.25,"threshold":0.1}}"#,
    ];
    assert_eq!(paper.lines(), expected);
    assert!(log.take_error().is_none());
}

fn logged(path: &Path, resumed: Option<u64>, steps: std::ops::RangeInclusive<u64>) -> Result<()> {
    let log = match resumed {
        None => JsonLines::create(path)?,
        Some(step) => JsonLines::resume(path, step)?,
    };
    let mut log = log.with_clock(at(7.0));
    for step in steps {
        let _ = log.on_step(&report(step, Metrics::default()));
        let _ = log.measured(step, &Metrics::default().with("eval_loss", step as f64));
    }
    Ok(())
}

#[test]
fn a_log_goes_on_where_the_run_does() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let [straight, broken] = ["straight.jsonl", "broken.jsonl"].map(|name| folder.path().join(name));
    logged(&straight, None, 1..=8)?;
    let expected = fs::read_to_string(&straight).expect("written");
    assert_eq!(expected.lines().count(), 16);
    // Killed at step 6, after a checkpoint at step 4.
    logged(&broken, Some(0), 1..=6)?;
    logged(&broken, Some(4), 5..=8)?;
    assert_eq!(fs::read_to_string(&broken).expect("written"), expected);
    // Killed in the midst of the line of step 5.
    let ends: Vec<_> = expected.match_indices('\n').map(|(end, _)| end + 1).collect();
    for torn in [ends[7], ends[7] + 1, ends[7] + 9, ends[8] - 1] {
        fs::write(&broken, &expected.as_bytes()[..torn]).expect("a file of the test's");
        logged(&broken, Some(4), 5..=8)?;
        assert_eq!(fs::read_to_string(&broken).expect("written"), expected);
    }
    // Half a first line.
    fs::write(&broken, &expected.as_bytes()[..5]).expect("a file of the test's");
    logged(&broken, Some(0), 1..=8)?;
    assert_eq!(fs::read_to_string(&broken).expect("written"), expected);
    Ok(())
}

#[test]
fn a_file_that_is_no_log_is_left_alone() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("notes");
    for text in ["no log\n", "no log", "{\"loss\": 1}\n"] {
        fs::write(&path, text).expect("a file of the test's");
        let error = JsonLines::resume(&path, 1).expect_err("somebody else's");
        assert!(
            matches!(&error, Error::File(e) if e.kind() == io::ErrorKind::InvalidData && e.path() == path),
            "{error}"
        );
        let error = JsonLines::create(&path).expect_err("is there").to_string();
        assert!(error.starts_with(&format!("cannot create {}: ", path.display())), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), text);
    }
    Ok(())
}

#[test]
fn a_full_disk_stops_the_run_and_says_so() {
    let mut log = JsonLines::new(Full, "log.jsonl");
    let mut board = TensorBoard::new(Full, "events");
    for _ in 0..2 {
        assert_eq!(log.on_step(&report(1, Metrics::default())), Flow::Stop);
        assert_eq!(board.on_step(&report(1, Metrics::default())), Flow::Stop);
    }
    for (error, path) in [(log.take_error(), "log.jsonl"), (board.take_error(), "events")] {
        let error = error.expect("could not write");
        assert!(matches!(&error, Error::File(e) if e.kind() == io::ErrorKind::StorageFull), "{error}");
        assert!(error.to_string().starts_with(&format!("cannot write {path}: ")), "{error}");
    }
    assert!(log.take_error().is_none() && board.take_error().is_none());
    // Nobody at the other end of a pipe is no such reason.
    assert_eq!(Progress::lines(1, Full).on_step(&report(1, Metrics::default())), Flow::Continue);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Bytes that TensorBoard 2.21 reads as what the names say (EventAccumulator), at the time 1.7e9.
const HEAD: &str = "1a00000000000000129bd82d0900000040fc54d94110001a0d627261696e2e4576656e743a32e6773e1a";
const TWO_SCALARS_AT_1: &str = "3200000000000000241956ec0900000040fc54d94110012a250a110a0a747261696e2f6c6f7373150000003f0a100a096576616c2f6c6f7373\
     15000000c001cf9cc3";
const GOES_ON_AT_3: &str = "0f000000000000006d532b090900000040fc54d94110033a020801c78f2cbc";

#[test]
fn an_event_file_is_as_tensorboard_reads_it() {
    let paper = Paper::default();
    let mut board = TensorBoard::new(paper.clone(), "events").with_clock(at(1.7e9));
    assert!(paper.bytes().is_empty());
    assert_eq!(board.measured(1, &Metrics::default().with("loss", 0.5).with("eval_loss", -2.0)), Flow::Continue);
    assert_eq!(hex(&paper.bytes()), format!("{HEAD}{TWO_SCALARS_AT_1}"));
    assert!(board.take_error().is_none());
}

/// Lengths of 128 bytes and more take two bytes, and a step of 300.
#[test]
fn a_step_has_all_its_numbers() {
    let paper = Paper::default();
    let mut board = TensorBoard::new(paper.clone(), "events").with_clock(at(1.7e9));
    let metrics = Metrics::default().with("rewards/chosen", 0.25).with("rewards/rejected", -0.25);
    assert_eq!(board.on_step(&report(300, metrics)), Flow::Continue);
    assert_eq!(board.on_alarm(&alarm()), Flow::Continue);
    let bytes = paper.bytes();
    let event = &bytes[HEAD.len() / 2..];
    let length = u64::from_le_bytes(event[..8].try_into().expect("eight bytes")) as usize;
    let message = &event[12..12 + length];
    // Time, step 300, and a summary of which the length is all that is left.
    let left = length - 9 - 3 - 3;
    assert!(left >= 128 && message.starts_with(&[0x09]));
    assert_eq!(message[9..15], [0x10, 0xac, 0x02, 0x2a, (left as u8) | 0x80, (left >> 7) as u8]);
    for (tag, value) in [("train/loss", 0.5_f32), ("train/grad_norm", 1.5), ("train/rewards/rejected", -0.25)] {
        let mut point = tag.as_bytes().to_vec();
        point.push(0x15);
        point.extend(value.to_le_bytes());
        assert!(message.windows(point.len()).any(|part| part == point), "{tag}");
    }
    let alarm = &event[12 + length + 4..];
    assert!(alarm.windows(6).any(|part| part == b"alarms") && alarm.windows(4).any(|part| part == b"text"));
}

#[test]
fn event_files_of_a_run_lie_in_its_folder() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let run = folder.path().join("runs/dpo");
    let mut first = TensorBoard::create(&run)?.with_clock(at(1.7e9));
    let mut second = TensorBoard::resume(&run, 2)?.with_clock(at(1.7e9));
    let loss = Metrics::default().with("loss", 0.5).with("eval_loss", -2.0);
    let _ = (first.measured(1, &loss), second.measured(1, &loss));
    let mut files: Vec<_> = fs::read_dir(&run).expect("made").map(|entry| entry.expect("read").path()).collect();
    files.sort();
    let name = files[0].file_name().expect("has a name").to_string_lossy().into_owned();
    assert!(files.len() == 2 && name.starts_with("events.out.tfevents."), "{files:?}");
    let mut contents: Vec<_> = files.iter().map(|file| hex(&fs::read(file).expect("written"))).collect();
    contents.sort_by_key(String::len);
    assert_eq!(contents[0], format!("{HEAD}{TWO_SCALARS_AT_1}"));
    assert_eq!(contents[1], format!("{HEAD}{GOES_ON_AT_3}{TWO_SCALARS_AT_1}"));
    Ok(())
}
