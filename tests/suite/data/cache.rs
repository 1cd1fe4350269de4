//! Caches: the same numbers back, bit for bit, and refused for anything else.

use std::fs;

use prefopt::{
    data::{Cache, CacheKey, CacheKind, DataError, Digest, Values},
    ndarray::{Array1, Array2, ArrayD, IxDyn, array},
    tch::{Device, Kind, Tensor},
};

use super::{Folder, refusal};
use crate::numbers;

fn key() -> CacheKey {
    CacheKey { kind: CacheKind::ReferenceLogps, data: Digest::from([1; 32]), model: Digest::from([2; 32]) }
}

fn cache() -> Cache {
    let single = ArrayD::from_shape_vec(IxDyn(&[3]), vec![-1.5_f32, f32::MIN_POSITIVE, 3.1]).expect("3 numbers");
    Cache::default()
        .with("chosen", array![-7.25, 0.1 + 0.2, -1e-300])
        .and_then(|cache| cache.with("scores", array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        .and_then(|cache| cache.with("single", Values::Single(single)))
        .expect("columns of three pairs")
}

#[test]
fn what_is_written_comes_back_bit_for_bit() {
    let folder = Folder::new();
    let file = folder.0.join("reference.safetensors");
    cache().write(&file, &key()).expect("a folder to write to");
    let found = Cache::open(&file, &key()).expect("what was written");
    assert_eq!(found, cache());
    assert_eq!(found.pairs(), Some(3));
    let shapes: Vec<_> = found.columns().map(|(name, values)| (name, values.shape().to_vec())).collect();
    assert_eq!(shapes, [("chosen", vec![3]), ("scores", vec![2, 3]), ("single", vec![3])]);
    // Over an older file, and nothing left beside it.
    cache().write(&file, &key()).expect("a file to replace");
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 1);
}

#[test]
fn another_model_other_data_and_another_kind_are_stale() {
    let folder = Folder::new();
    let file = folder.0.join("reference.safetensors");
    cache().write(&file, &key()).expect("a folder to write to");
    let (ones, nines) = ("01".repeat(32), "09".repeat(32));
    let cases = [
        (CacheKey { data: Digest::from([9; 32]), ..key() }, format!("data digest is {ones}, expected {nines}")),
        (
            CacheKey { model: Digest::from([9; 32]), ..key() },
            format!("model digest is {}, expected {nines}", "02".repeat(32)),
        ),
        (
            CacheKey { kind: CacheKind::RewardScores, ..key() },
            "kind is reference log-probabilities, expected reward scores".to_owned(),
        ),
        (
            CacheKey { kind: CacheKind::Other("values"), ..key() },
            "kind is reference log-probabilities, expected values".to_owned(),
        ),
    ];
    for (other, expected) in cases {
        let message = refusal(Cache::open(&file, &other));
        assert_eq!(message, format!("{} is stale: {expected}; delete it to compute it again", file.display()));
        // Not computed again behind one's back.
        let again = Cache::open_or(&file, &other, || panic!("a stale cache is not replaced"));
        assert!(matches!(again, Err(prefopt::Error::Data(DataError::Stale { .. }))));
    }
    assert_eq!(Cache::open(&file, &key()).expect("still there"), cache());
    // A safetensors file of somebody else.
    let foreign = folder.file("foreign.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    assert!(refusal(Cache::open(&foreign, &key())).contains("is stale: format is absent, expected 1"));
}

#[test]
fn a_file_that_was_cut_off_is_refused() {
    let folder = Folder::new();
    let file = folder.0.join("reference.safetensors");
    cache().write(&file, &key()).expect("a folder to write to");
    let bytes = fs::read(&file).expect("a file");
    for length in [0, 7, 40, bytes.len() - 1] {
        fs::write(&file, &bytes[..length]).expect("a file");
        let found = Cache::open(&file, &key());
        assert!(matches!(found, Err(DataError::Cache { .. })), "{length}: {found:?}");
    }
    assert!(matches!(Cache::open(folder.0.join("none"), &key()), Err(DataError::Io { .. })));
    assert!(matches!(cache().write(folder.0.join("no/folder/here"), &key()), Err(DataError::Io { .. })));
}

#[test]
fn a_cache_is_computed_once() -> prefopt::Result<()> {
    let folder = Folder::new();
    let file = folder.0.join("reference.safetensors");
    let mut times = 0;
    for _ in 0..3 {
        let found = Cache::open_or(&file, &key(), || {
            times += 1;
            Ok(cache())
        })?;
        assert_eq!(found, cache());
    }
    assert_eq!(times, 1);
    // An error of the model's is the caller's, and leaves no file.
    let other = folder.0.join("other.safetensors");
    let found = Cache::open_or(&other, &key(), || Err(prefopt::Error::NothingObserved));
    assert!(matches!(found, Err(prefopt::Error::NothingObserved)) && !other.exists());
    Ok(())
}

#[test]
fn batches_are_gathered_along_the_pairs() -> prefopt::Result<()> {
    let cache = cache();
    let chosen = cache.gather("chosen", &[2, 0, 0], (Kind::Double, Device::Cpu))?;
    assert_eq!(numbers(&chosen), [-1e-300, -7.25, -7.25]);
    let scores = cache.gather("scores", &[2, 0], (Kind::Float, Device::Cpu))?;
    assert_eq!((scores.size(), scores.kind(), numbers(&scores)), (vec![2, 2], Kind::Float, vec![3.0, 1.0, 6.0, 4.0]));
    let one = cache.gather("scores", &[1], (Kind::Double, Device::Cpu))?;
    assert_eq!((one.size(), numbers(&one)), (vec![2, 1], vec![2.0, 5.0]));
    assert_eq!(
        refusal(cache.gather("chosen", &[3], (Kind::Double, Device::Cpu))),
        "pair 3 was asked for, but there are 3, numbered from 0"
    );
    assert_eq!(refusal(cache.column("ref")), "the cache has no column `ref`, only: chosen, scores, single");
    Ok(())
}

#[test]
fn tensors_become_columns_in_their_kind() -> prefopt::Result<()> {
    let tensor = Tensor::from_slice2(&[[0.1_f32, 0.2], [0.3, 0.4], [0.5, 0.6]]).set_requires_grad(true);
    let cache = Cache::default().with("t", Values::try_from(&tensor.transpose(0, 1))?)?;
    let Values::Single(values) = cache.column("t")? else { panic!("f32 stays f32") };
    assert_eq!(values, &array![[0.1_f32, 0.3, 0.5], [0.2, 0.4, 0.6]].into_dyn(), "in the order of its indices");
    assert_eq!(cache.pairs(), Some(3));
    let folder = Folder::new();
    let file = folder.0.join("t.safetensors");
    cache.write(&file, &key())?;
    assert_eq!(Cache::open(&file, &key())?, cache, "as it lies in memory or not");
    assert!(refusal(Values::try_from(&Tensor::from_slice(&[1_i64]))).contains("cached values must be Float or Double"));
    Ok(())
}

#[test]
fn what_is_no_column_is_refused() {
    let with = |values: Values| refusal(cache().with("x", values));
    let scalar = Values::Double(ArrayD::zeros(IxDyn(&[])));
    assert_eq!(with(scalar), "cached column `x` must be [pairs] or [members, pairs], got []");
    let cube = Values::Double(ArrayD::zeros(IxDyn(&[1, 2, 3])));
    assert_eq!(with(cube), "cached column `x` must be [pairs] or [members, pairs], got [1, 2, 3]");
    let longer = Array1::<f64>::zeros(4).into();
    assert_eq!(with(longer), "cached column `x` must be of as many pairs as the other columns, got 4 pairs");
    let nan = array![[0.0, 0.0, 0.0], [0.0, f64::NAN, 0.0]].into();
    assert_eq!(with(nan), "cached column `x` must be finite, got another number at index 4 of [2, 3]");
    let infinite: Array2<f64> = array![[0.0, f64::INFINITY, 0.0]];
    assert!(with(infinite.into()).contains("index 1 of [1, 3]"));
}
