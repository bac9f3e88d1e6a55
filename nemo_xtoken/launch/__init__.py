"""A run, a cluster and a job become an sbatch script; the only room that knows SLURM."""

from nemo_xtoken.launch.cluster import ClusterConfig, ContainerConfig
from nemo_xtoken.launch.job import ComponentConfig, HealthConfig, JobConfig
from nemo_xtoken.launch.plan import LaunchPlan

__all__ = ["ClusterConfig", "ComponentConfig", "ContainerConfig", "HealthConfig", "JobConfig", "LaunchPlan"]
