//! Finds a model: a directory or a GGUF file.

use std::path::{Path, PathBuf};

/// The bundled model's name for clients.
pub const DEMO_MODEL_NAME: &str = "stator-demo";

/// Where the bundled model lies in a source tree or an installation.
const DEMO_PATHS: [&str; 2] = ["models/demo", "share/stator/models/demo"];

/// A model to be served.
#[derive(Debug, PartialEq, Eq)]
pub struct ModelDirectory {
    /// Where it lies: a directory, or a GGUF file.
    pub path: PathBuf,
    /// What clients call it.
    pub name: String,
}

/// Finds `model`, or the bundled one, to be served under `name` if there is one. Errors: a sentence.
pub fn named(model: Option<&str>, name: Option<&str>) -> Result<ModelDirectory, String> {
    let found = find(model)?;
    match name {
        Some("") => Err("--model-name is empty; give the name clients use".into()),
        Some(name) => Ok(ModelDirectory { name: name.into(), ..found }),
        None => Ok(found),
    }
}

/// Finds `model`, or the bundled one. Errors: a sentence.
pub fn find(model: Option<&str>) -> Result<ModelDirectory, String> {
    match model {
        Some(model) => at(model),
        None => bundled(),
    }
}

fn at(model: &str) -> Result<ModelDirectory, String> {
    let path = Path::new(model);
    let advice = "give a directory in Hugging Face layout \
        (config.json, tokenizer.json, *.safetensors), a .gguf file, or no MODEL for the bundled one";
    if !path.exists() {
        return Err(format!("MODEL {model} does not exist; {advice}"));
    }
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if !path.is_dir() && !is_gguf {
        return Err(format!("MODEL {model} is a file of another kind; {advice}"));
    }
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = if path.is_dir() { absolute.file_name() } else { path.file_stem() };
    let name = name.map(|name| name.to_string_lossy().into_owned());
    Ok(ModelDirectory { path: path.into(), name: name.unwrap_or_else(|| "model".into()) })
}

/// Looks beside the executable and in all folders above it, then in the working directory.
fn bundled() -> Result<ModelDirectory, String> {
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let above = executable.iter().flat_map(|path| path.ancestors().skip(1));
    let places = above.chain([Path::new(".")]);
    let found = places
        .flat_map(|place| DEMO_PATHS.map(|path| place.join(path)))
        .find(|path| path.join("config.json").is_file());
    match found {
        Some(path) => Ok(ModelDirectory { path, name: DEMO_MODEL_NAME.into() }),
        None => Err("the bundled model (models/demo) is not beside this executable; \
            run it from its source tree, or name a MODEL"
            .into()),
    }
}
