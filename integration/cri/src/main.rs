//! `pelagos-cri` asks an engine for sandboxes and containers in Kubernetes' Container Runtime Interface (version v1), as
//! a kubelet would. It is for the cases in `integration/containerd/run`: an id is printed as a line, everything that the
//! engine tells as the JSON of its message, and `exec` ends like its command.

mod config;

use anyhow::{Context as _, Result, anyhow};
use clap::{Parser, Subcommand};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use std::io::Write as _;
use std::process::ExitCode;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// The exit code of what goes wrong here or in the engine: commands that `exec` runs have others.
const OURS: u8 = 125;

#[derive(Parser)]
#[command(about = "The Container Runtime Interface, a call at a time")]
struct Cli {
    /// The engine's socket.
    #[arg(long, env = "CRI_SOCKET")]
    socket: String,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// What the engine is, its state and its configuration.
    Engine,
    /// The id of an image that the engine has.
    Image { name: String },
    /// Sandboxes: what the containers of a pod share.
    #[command(subcommand)]
    Sandbox(Sandbox),
    /// Containers.
    #[command(subcommand)]
    Container(Container),
}

#[derive(Subcommand)]
enum Sandbox {
    /// Make a sandbox, start it, and print its id.
    Run {
        #[command(flatten)]
        pod: config::Pod,
        /// What a RuntimeClass calls its handler; without it the engine's default.
        #[arg(long, default_value = "")]
        handler: String,
    },
    /// Its state, address, process, handler.
    Status { id: String },
    /// What it uses, with its containers.
    Stats { id: String },
    /// End what runs in it, and give its network back.
    Stop { id: String },
    /// Remove it and its containers.
    Remove { id: String },
    /// The ids of all sandboxes.
    List,
}

#[derive(Subcommand)]
enum Container {
    /// Make a container in a sandbox and print its id.
    Create {
        /// The sandbox.
        sandbox: String,
        /// The pod, as it was given to `sandbox run`.
        #[command(flatten)]
        pod: config::Pod,
        #[command(flatten)]
        container: config::Container,
    },
    /// Start what was created.
    Start { id: String },
    /// Run a command in it; output and exit code are the command's.
    Exec {
        id: String,
        /// Seconds after which it is killed; 0: never.
        #[arg(long, default_value_t = 0)]
        timeout: i64,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Change limits.
    Update {
        id: String,
        #[command(flatten)]
        limits: config::Limits,
    },
    /// Its state, exit code, process, configuration.
    Status { id: String },
    /// What it uses.
    Stats { id: String },
    /// Ask it to end, and kill it after a while.
    Stop {
        id: String,
        /// Seconds that it may take.
        #[arg(long, default_value_t = 0)]
        timeout: i64,
    },
    /// Remove it.
    Remove { id: String },
    /// The ids of all containers.
    List,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("wait for sockets")
        .and_then(|waiting| waiting.block_on(answer(cli)));
    code.unwrap_or_else(|error| {
        eprintln!("pelagos-cri: {error:#}");
        ExitCode::from(OURS)
    })
}

async fn answer(cli: Cli) -> Result<ExitCode> {
    let engine = Endpoint::from_shared(format!("unix://{}", cli.socket))?
        .connect()
        .await
        .with_context(|| format!("connect to {}", cli.socket))?;
    match cli.noun {
        Noun::Engine => show_engine(RuntimeServiceClient::new(engine)).await?,
        Noun::Image { name } => show_image(ImageServiceClient::new(engine), &name).await?,
        Noun::Sandbox(verb) => sandbox(RuntimeServiceClient::new(engine), verb).await?,
        Noun::Container(verb) => return container(RuntimeServiceClient::new(engine), verb).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_engine(mut engine: RuntimeServiceClient<Channel>) -> Result<()> {
    let version = engine.version(VersionRequest::default()).await;
    show(&told("ask for the version", version)?)?;
    let status = engine.status(StatusRequest { verbose: true }).await;
    show(&told("ask for the status", status)?)
}

async fn show_image(mut engine: ImageServiceClient<Channel>, name: &str) -> Result<()> {
    let request = ImageStatusRequest {
        image: Some(config::image(name)),
        verbose: false,
    };
    let answer = told("look for the image", engine.image_status(request).await)?;
    let image = answer.image.with_context(|| format!("no image {name}"))?;
    println!("{}", image.id);
    Ok(())
}

async fn sandbox(mut engine: RuntimeServiceClient<Channel>, verb: Sandbox) -> Result<()> {
    match verb {
        Sandbox::Run { pod, handler } => {
            let request = RunPodSandboxRequest {
                config: Some(pod.message()),
                runtime_handler: handler,
            };
            let answer = engine.run_pod_sandbox(request).await;
            println!("{}", told("run the sandbox", answer)?.pod_sandbox_id);
        }
        Sandbox::Status { id } => {
            let request = PodSandboxStatusRequest {
                pod_sandbox_id: id,
                verbose: true,
            };
            let answer = engine.pod_sandbox_status(request).await;
            show(&told("ask for the sandbox", answer)?)?;
        }
        Sandbox::Stats { id } => {
            let request = PodSandboxStatsRequest { pod_sandbox_id: id };
            let answer = engine.pod_sandbox_stats(request).await;
            show(&told("measure the sandbox", answer)?.stats)?;
        }
        Sandbox::Stop { id } => {
            let request = StopPodSandboxRequest { pod_sandbox_id: id };
            let answer = engine.stop_pod_sandbox(request).await;
            told("stop the sandbox", answer)?;
        }
        Sandbox::Remove { id } => {
            let request = RemovePodSandboxRequest { pod_sandbox_id: id };
            let answer = engine.remove_pod_sandbox(request).await;
            told("remove the sandbox", answer)?;
        }
        Sandbox::List => {
            let request = ListPodSandboxRequest::default();
            let answer = engine.list_pod_sandbox(request).await;
            for sandbox in told("list the sandboxes", answer)?.items {
                println!("{}", sandbox.id);
            }
        }
    }
    Ok(())
}

async fn container(mut engine: RuntimeServiceClient<Channel>, verb: Container) -> Result<ExitCode> {
    match verb {
        Container::Create {
            sandbox,
            pod,
            container,
        } => {
            let request = CreateContainerRequest {
                pod_sandbox_id: sandbox,
                config: Some(container.message(&pod)),
                sandbox_config: Some(pod.message()),
            };
            let answer = engine.create_container(request).await;
            println!("{}", told("create the container", answer)?.container_id);
        }
        Container::Start { id } => {
            let request = StartContainerRequest { container_id: id };
            let answer = engine.start_container(request).await;
            told("start the container", answer)?;
        }
        Container::Exec {
            id,
            timeout,
            command,
        } => {
            let request = ExecSyncRequest {
                container_id: id,
                cmd: command,
                timeout,
            };
            let answer = told("exec", engine.exec_sync(request).await)?;
            std::io::stdout().write_all(&answer.stdout)?;
            std::io::stderr().write_all(&answer.stderr)?;
            return Ok(ExitCode::from(u8::try_from(answer.exit_code)?));
        }
        Container::Update { id, limits } => {
            let request = UpdateContainerResourcesRequest {
                container_id: id,
                linux: Some(limits.message()),
                ..Default::default()
            };
            let answer = engine.update_container_resources(request).await;
            told("update the container", answer)?;
        }
        Container::Status { id } => {
            let request = ContainerStatusRequest {
                container_id: id,
                verbose: true,
            };
            let answer = engine.container_status(request).await;
            show(&told("ask for the container", answer)?)?;
        }
        Container::Stats { id } => {
            let request = ContainerStatsRequest { container_id: id };
            let answer = engine.container_stats(request).await;
            show(&told("measure the container", answer)?.stats)?;
        }
        Container::Stop { id, timeout } => {
            let request = StopContainerRequest {
                container_id: id,
                timeout,
            };
            let answer = engine.stop_container(request).await;
            told("stop the container", answer)?;
        }
        Container::Remove { id } => {
            let request = RemoveContainerRequest { container_id: id };
            let answer = engine.remove_container(request).await;
            told("remove the container", answer)?;
        }
        Container::List => {
            let request = ListContainersRequest::default();
            let answer = engine.list_containers(request).await;
            for container in told("list the containers", answer)?.containers {
                println!("{}", container.id);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the engine answered, or what did not work and the engine's own words for why.
fn told<T>(deed: &'static str, answer: Result<Response<T>, Status>) -> Result<T> {
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(anyhow!("{}", status.message()).context(deed)),
    }
}

fn show(message: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(message)?);
    Ok(())
}
