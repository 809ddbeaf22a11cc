"""The options that a resumed run may change: it trains on the same batches to the same weights.

An option that is missing here is fixed. A new one belongs here only if no batch, schedule or weight depends on it.
"""

RESUMABLE_OPTIONS = {"output_dir", "dataloader_num_workers", "per_device_eval_batch_size", "checkpointing_steps"}
RESUMABLE_OPTIONS |= {"checkpoints_total_limit", "logging_steps", "eval_epochs", "report_to"}
RESUMABLE_OPTIONS |= {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_create_pr"}

# These may change from one path to another that has the same files.
PATH_OPTIONS = {"dataset_name", "train_dir", "validation_dir", "train_annotations", "validation_annotations"}
PATH_OPTIONS |= {"config_name", "model_name_or_path"}

# Of TrainingArguments. Those of evaluation are fixed: each evaluation of Trainer draws from the random numbers that
# mixing uses, and it decides which model is the best, and when to stop early.
TRAINER_OPTIONS = {"logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node", "log_level"}
TRAINER_OPTIONS |= {"log_level_replica", "disable_tqdm", "run_name", "project", "trackio_space_id"}
TRAINER_OPTIONS |= {"trackio_bucket_id", "trackio_static_space_id", "save_total_limit", "save_on_each_node"}
TRAINER_OPTIONS |= {"dataloader_prefetch_factor", "dataloader_pin_memory", "eval_accumulation_steps"}
TRAINER_OPTIONS |= {"skip_memory_metrics", "ddp_timeout"}
SAVING = {"save_strategy", "save_steps"}


def resumable_in_trainer(load_best_model_at_end: bool) -> set[str]:
    """The options of `finetune.py` that a resumed run may change, besides paths."""
    # The best model is one of those that were saved.
    return RESUMABLE_OPTIONS | TRAINER_OPTIONS | (set() if load_best_model_at_end else SAVING)
