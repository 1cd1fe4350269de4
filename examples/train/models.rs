//! Folders of models: what is loaded from them, copied out of them and known of them, and what trains their weights.

use std::{
    collections::BTreeSet,
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use prefopt::{
    data::{Digest, TextTokenizer},
    lm::{CausalLm, LoraConfig, ModelConfig},
    matmul,
    train::{AdamW, AdamWConfig, Descent, Warmup},
};
use tch::{Device, Kind, Tensor};

use crate::{
    flags::{After, Dtype, LoraFlags, Matmul, ModelFlags, RunFlags},
    run::settings,
    support,
};

/// What `reward` leaves in its folder at the very end.
pub const REPORT: &str = "report.json";

/// Where and in what kind a model is computed; says so, and chooses the f32 product: that of the run in the folder
/// `run`, where there is one.
pub fn place(flags: &ModelFlags, run: Option<&Path>) -> Result<(Device, Kind)> {
    let (device, kind) = options(flags)?;
    eprintln!("on {}, weights in {}", flags.device, if kind == Kind::Float { "f32" } else { "bf16" });
    match (flags.matmul, device, kind) {
        (Matmul::Default, ..) => {}
        (Matmul::Fastest, Device::Cpu, Kind::Float) => match run.and_then(settings::product) {
            Some(product) => {
                matmul::set(product)?;
                eprintln!("f32 products by {product}, as the run was begun");
            }
            None => eprintln!("{}", matmul::choose()?),
        },
        (Matmul::Fastest, ..) => eprintln!("--matmul fastest changes nothing here: it concerns f32 on the CPU"),
    }
    Ok((device, kind))
}

fn options(flags: &ModelFlags) -> Result<(Device, Kind)> {
    let device = support::device(&flags.device).with_context(|| format!("--device {}", flags.device))?;
    let kind = match flags.dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    };
    Ok((device, kind))
}

/// The configuration in the folder of `--model`.
pub fn config(folder: &Path) -> Result<ModelConfig> {
    let has = |name: &str| folder.join(name).is_file();
    ensure!(
        has("config.json") || !has("adapter_config.json"),
        "{} holds an adapter alone: give its base with --model and this folder with --adapter",
        folder.display()
    );
    Ok(ModelConfig::read(folder)?)
}

/// The tokenizer of a model's folder.
pub fn tokenizer(folder: &Path) -> Result<TextTokenizer> {
    // Not as a context: the error's text has its cause in it already.
    TextTokenizer::from_folder(folder).map_err(|error| anyhow!("{} has no usable tokenizer: {error}", folder.display()))
}

/// The model, with the adapter of `--adapter` or a new one of `--lora`.
pub fn load(flags: &ModelFlags, lora: Option<&LoraFlags>, seed: u64, checkpointing: bool) -> Result<CausalLm> {
    let (device, kind) = options(flags)?;
    let fresh = lora.and_then(|lora| Some((lora, lora.lora?)));
    ensure!(
        flags.adapter.is_none() || fresh.is_none(),
        "--adapter goes on with an adapter and --lora makes a new one: give one of the two"
    );
    let model = CausalLm::load(&flags.model, device, kind)?;
    let model = match (&flags.adapter, fresh) {
        (Some(folder), _) => model.load_adapter(folder)?,
        (None, Some((lora, rank))) => adapted(model, lora, rank, seed)?,
        (None, None) => model,
    };
    Ok(if checkpointing { model.with_checkpointing() } else { model })
}

fn adapted(model: CausalLm, flags: &LoraFlags, rank: NonZeroUsize, seed: u64) -> Result<CausalLm> {
    let targets = if flags.lora_targets.is_empty() { linear_layers(&model) } else { flags.lora_targets.clone() };
    let alpha = flags.lora_alpha.unwrap_or(2.0 * rank.get() as f64);
    let config = LoraConfig::new(rank, alpha, targets).context("--lora-alpha")?;
    model.with_lora(config, seed).context("--lora-targets")
}

/// What the names of the blocks' matrices end with, each once.
fn linear_layers(model: &CausalLm) -> Vec<String> {
    let of_block = |name: &str| name.starts_with("model.layers.") || name.starts_with("transformer.h.");
    let layer = |(name, tensor): (&str, &Tensor)| {
        if tensor.dim() != 2 || !of_block(name) {
            return None;
        }
        name.strip_suffix(".weight")?.rsplit('.').next().map(str::to_owned)
    };
    model.named_parameters().filter_map(layer).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Of a folder's configuration and weights, an adapter's too.
pub fn weights_digest(folder: &Path) -> Result<Digest> {
    digest_of(&[folder])
}

/// Of the configurations and weights of several folders that one model is made of, or a family.
pub fn digest_of(folders: &[&Path]) -> Result<Digest> {
    let mut files = Vec::new();
    for folder in folders {
        let own = weight_files(folder)?;
        ensure!(!own.is_empty(), "{} has neither configuration nor weights", folder.display());
        files.extend(own);
    }
    Digest::of_files(&files).map_err(|error| anyhow!("{error}"))
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read the folder {}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if matches!(name, "config.json" | "adapter_config.json") || name.ends_with(".safetensors") {
            files.push(file);
        }
    }
    Ok(files)
}

/// Folders of reward models: those given, and of one that `reward` has made its members, if it has made them all.
pub fn family(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut members = Vec::new();
    for folder in folders {
        let own = (0..).map(|member| folder.join(format!("member-{member}"))).take_while(|member| member.is_dir());
        let own: Vec<PathBuf> = own.collect();
        ensure!(
            (own.is_empty() && !folder.join("member-0.run").is_dir()) || folder.join(REPORT).is_file(),
            "the family in {} is not finished, it has no {REPORT}: start `reward` again with the same flags",
            folder.display()
        );
        if own.is_empty() {
            ensure!(
                folder.join("config.json").is_file(),
                "{} is no reward model and no family: it has neither config.json nor member-0",
                folder.display()
            );
            members.push(folder.clone());
        } else {
            members.extend(own);
        }
    }
    Ok(members)
}

/// Copies what belongs to text and not to weights.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    const FILES: [&str; 5] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ];
    fs::create_dir_all(to).with_context(|| format!("cannot make the folder {}", to.display()))?;
    for name in FILES {
        let (file, copy) = (from.join(name), to.join(name));
        if file.is_file() {
            fs::copy(&file, &copy).with_context(|| format!("cannot copy {} to {}", file.display(), copy.display()))?;
        }
    }
    Ok(())
}

/// Writes a folder beside its place, and moves it there when it is whole. An old one is whole until then, and out of
/// the way before it loses a file.
pub fn publish(folder: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (new, old) = (folder.with_extension("partial"), folder.with_extension("partial-old"));
    let clear = |folder: &Path| match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", folder.display())),
    };
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
    };
    clear(&new)?;
    fs::create_dir_all(&new).with_context(|| format!("cannot make the folder {}", new.display()))?;
    write(&new)?;
    if folder.exists() {
        clear(&old)?;
        rename(folder, &old)?;
    }
    rename(&new, folder)?;
    clear(&old)
}

/// Of these parameters; those in half precision have masters.
pub fn adamw(parameters: Vec<(String, Tensor)>, flags: &RunFlags, kind: Kind) -> Result<AdamW> {
    let config = AdamWConfig::new((0.9, 0.999), 1e-8, flags.weight_decay).context("--weight-decay")?;
    let optimizer = AdamW::new(parameters.into_iter().map(|(_, tensor)| tensor).collect(), config)?;
    Ok(if kind == Kind::BFloat16 { optimizer.with_masters() } else { optimizer })
}

/// What moves these parameters, over so many steps.
pub fn descent(
    parameters: Vec<(String, Tensor)>,
    flags: &RunFlags,
    kind: Kind,
    default_rate: f64,
    total_steps: u64,
) -> Result<Descent> {
    let rate = flags.learning_rate.unwrap_or(default_rate);
    let descent = Descent::new(adamw(parameters, flags, kind)?, rate).context("--learning-rate")?;
    let schedule = match flags.schedule {
        After::Constant => Warmup::new(flags.warmup),
        After::Cosine => {
            ensure!(
                flags.warmup < total_steps,
                "--warmup {} leaves nothing of the run's {total_steps} steps to --schedule cosine",
                flags.warmup
            );
            // 0 is reached behind the last step, which would change nothing otherwise.
            Warmup::new(flags.warmup).then_cosine(total_steps + 1)?
        }
    };
    let max_norm = (flags.max_norm != 0.0).then_some(flags.max_norm);
    descent.with_schedule(schedule).with_max_norm(max_norm).context("--max-norm")
}
