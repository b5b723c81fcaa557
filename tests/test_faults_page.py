"""docs/faults.md promises; every row is held by tests, which must exist."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
ROWS = [line for line in LINES if not line.startswith(("| what happens", "| ---"))]
FAULTS, FOLDERS, TOGETHER = "training/test_faults.py", "system/test_folders.py", "training/test_together.py"
CHECKPOINT, RELEASE, SAMPLES = "training/test_checkpoint.py", "runs/test_release.py", "drawing/test_samples.py"
LOADING, BAD_FILES, PREPARE = "data/test_load_images.py", "data/test_bad_files.py", "data/test_prepare.py"
TEAM = "launchers/test_team.py"
FIELD_FILES = "forecasts/test_file_checks.py"
HELD_BY = {  # what happens: the tests
    "a zarr store names a codec that is not on the list, or holds objects": [
        f"{FIELD_FILES}::test_a_store_names_no_code",
        f"{FIELD_FILES}::test_a_store_holds_no_objects",
    ],
    "HDF5 or NetCDF names another file, or a filter that is a plugin": [
        f"{FIELD_FILES}::test_hdf5_names_no_other_file",
        f"{FIELD_FILES}::test_filters_that_are_plugins_are_refused",
    ],
    "links or pipes in a zarr store, a pipe in place of a file": [
        f"{FIELD_FILES}::test_a_store_leads_nowhere_and_holds_no_pipe",
        f"{FIELD_FILES}::test_a_pipe_is_no_source",
    ],
    "chunks are missing, or were never written": [
        f"{FIELD_FILES}::test_chunks_that_are_not_there_are_counted",
        f"{FIELD_FILES}::test_hdf5_that_was_never_written_is_counted",
    ],
    "a file is damaged, also where it is read only later": [f"{FIELD_FILES}::test_what_fails_later_names_the_file"],
    "a file claims more than this machine's memory holds": [
        f"{FIELD_FILES}::test_more_trajectories_than_any_file_holds",
        f"{FIELD_FILES}::test_memory_that_nobody_has_is_a_claim_of_the_file",
    ],
    "SIGTERM, SIGUSR1, SIGHUP or Ctrl-C in training": [f"{FAULTS}::test_a_signal_saves_first"],
    "a second signal": [
        f"{FAULTS}::test_a_second_signal_ends_at_once_and_harms_nothing",
        f"{FAULTS}::test_control_c_twice_the_second_time_during_the_save_harms_nothing",
    ],
    "`kill -9`, power failure in training": [
        f"{FAULTS}::test_killed_again_and_again_at_random_events_the_run_ends_the_same",
        f"{FAULTS}::test_killed_at_a_point_of_writing_the_run_ends_the_same",
        "training/test_loop.py::test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit",
    ],
    "the run was moved, or its images, teacher or codec": [
        "runs/test_train.py::test_the_same_images_at_another_place_are_the_same_run",
        "runs/test_train.py::test_a_model_that_a_run_started_from_need_not_be_there_any_more",
        "latents/test_latent_run.py::test_training_goes_on_where_its_latents_and_their_codec_were_moved",
    ],
    "a second process trains the same run": [f"{FAULTS}::test_two_processes_cannot_train_one_run"],
    "`sample`, `forecast`, `evaluate --keep`, `compare`, `data prepare` or `data encode` is stopped": [
        "forecasts/test_forecast_command.py::test_a_forecast_that_is_stopped_has_the_exit_code_of_the_page",
        f"{SAMPLES}::test_killed_at_every_write_the_same_call_ends_with_the_same_bits",
        "metrics/test_feature_store.py::test_a_killed_run_goes_on_with_the_same_bits",
        f"{PREPARE}::test_a_killed_preparation_goes_on_and_makes_no_finished_shard_again",
        "latents/test_encode.py::test_a_killed_encoding_goes_on_to_the_same_bits",
    ],
    "the time of `compare` or `demo` is over": [
        "comparison/test_compare.py::test_however_little_time_there_is_something_is_on_the_front_and_both_sides_are",
    ],
    "a process is killed": [
        "cli/test_nproc.py::test_a_process_that_is_killed_changes_no_bit",
        f"{TOGETHER}::test_when_one_is_killed_the_others_end_and_say_why",
    ],
    "a process hangs, a disk does not answer": [
        f"{TOGETHER}::test_when_one_hangs_the_others_end_after_the_timeout_and_it_says_where_it_stands",
    ],
    "one process finds a mistake": [
        "cli/test_nproc.py::test_a_mistake_in_the_processes_is_the_exit_code_of_the_command"
    ],
    "another number of processes, threads or micro-batches on resuming": [
        f"{TOGETHER}::test_two_processes_have_the_losses_of_one_also_resumed_by_another_number",
        "training/test_loop.py::test_resuming_with_other_micro_batches_and_threads_sees_the_same_samples",
    ],
    "more processes than rows of a micro-batch": [f"{TOGETHER}::test_every_process_has_a_row_of_every_micro_batch"],
    "a process of `sample`, `evaluate`, `compare`, `forecast`, `plan` or `data` is killed": [
        "cli/test_several_processes.py::test_a_command_has_the_bits_of_one_process_also_where_one_died_and_another_number_goes_on",
        f"{TEAM}::test_a_process_that_is_killed_ends_all_after_what_the_others_did",
    ],
    "a signal comes to one of them, or to all": [
        f"{TEAM}::test_a_signal_to_a_follower_alone_stops_all",
        f"{TEAM}::test_in_the_middle_of_blocks_all_end_with_the_codes_of_training",
    ],
    "torchrun or Slurm starts several processes of a command that is one": [
        "cli/test_nproc.py::test_what_is_one_process_is_refused_under_torchrun"
    ],
    "the newest checkpoint is damaged": [
        f"{CHECKPOINT}::test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used",
        "cli/test_reading.py::test_every_command_warns_where_the_newest_is_damaged",
    ],
    "no checkpoint is intact": [f"{FAULTS}::test_if_no_checkpoint_is_intact_the_run_does_not_start_over"],
    "the disk is full when a checkpoint or log is due": [
        f"{FAULTS}::test_a_full_disk_while_saving_costs_that_checkpoint_only",
        f"{FAULTS}::test_a_full_disk_for_the_log_costs_the_log_only",
    ],
    "the disk is full at the last checkpoint, or for any other file": [
        f"{FAULTS}::test_if_the_last_checkpoint_cannot_be_written_that_is_an_error",
        "system/test_files.py::test_a_file_that_cannot_be_written_stays_what_it_was",
        f"{FOLDERS}::test_a_failure_leaves_nothing_behind",
    ],
    "other options for a run that exists": ["test_bad_input.py::test_changed_options_are_refused_with_the_difference"],
    "other images or another teacher than at the start": [
        "cli/test_cli.py::test_other_images_under_the_same_name_are_refused",
        "runs/test_distill.py::test_a_changed_teacher_is_refused",
    ],
    "`--out` is a file, a run of something else or somebody's folder": [
        "test_bad_input.py::test_a_place_that_is_no_place_for_a_run_is_refused_before_any_work"
    ],
    "a bit flips, a file is cut off or missing": [
        f"{RELEASE}::test_any_flipped_bit_is_an_error_that_names_the_file",
        f"{RELEASE}::test_a_file_that_is_cut_off_empty_or_missing_is_an_error",
        "pipelines/test_pipeline.py::test_a_flipped_bit_in_any_file_is_an_error_that_names_the_folder",
        "test_bad_input.py::test_a_plan_that_is_none_is_named",
    ],
    "a value in a JSON file is of another kind, too large or missing": [
        "test_hostile_json.py::test_a_run",
        "test_hostile_json.py::test_released_weights",
        "test_hostile_json.py::test_a_folder_of_diffusers",
        "test_hostile_json.py::test_a_pipeline_of_ours",
    ],
    "a weight is declared as of another type": [
        "test_hostile_json.py::test_a_run_s_weights_are_not_cast",
        "test_hostile_json.py::test_weights_of_other_libraries_are_not_cast",
    ],
    "a newer version wrote the folder": [
        "test_hostile_json.py::test_a_format_of_a_newer_version_is_refused_as_that",
    ],
    "a pickle among the files": [
        "test_bad_input.py::test_pickles_among_a_run_s_files_are_never_executed",
        "test_bad_input.py::test_pickles_among_released_weights_are_never_executed",
    ],
    "a file names a class of another package": [
        "config/test_imports.py::test_no_file_that_is_read_imports_what_it_names"
    ],
    "`export --out` is a run or holds other files": [f"{RELEASE}::test_anything_else_is_refused_and_left_alone"],
    "weights of a diffusers folder are missing": [
        "pipelines/test_retrofit.py::test_what_cannot_be_retrofitted_is_refused_with_the_reason"
    ],
    "a plan that a student was not distilled for": [
        "cli/test_cli_distill.py::test_what_a_student_does_not_serve_is_one_line"
    ],
    "an option out of its range, options that do not go together": [
        "config/test_ranges.py::test_an_option_out_of_range_is_one_line_and_exit_code_2",
        "test_bad_input.py::test_options_that_do_not_go_together_are_one_line_before_any_work",
    ],
    "a loss or gradient is not finite": ["training/test_loop.py::test_one_bad_loss_skips_one_update_visibly"],
    "ten updates in a row are not finite": [
        "training/test_loop.py::test_bad_losses_without_end_stop_with_the_last_good_checkpoint"
    ],
    "a student collapses, its auxiliary lags": [
        "methods/test_watch.py::test_what_goes_wrong_is_told_once_with_the_knob"
    ],
    "not enough memory for networks": ["cli/test_cli.py::test_too_little_memory_is_one_line_with_what_to_lower"],
    "not enough memory for what is read": [
        "cli/test_cli.py::test_what_is_short_beside_a_network_is_not_mended_by_a_smaller_batch"
    ],
    "a number that is the name of another class": [
        "experiment/test_class_number.py::test_what_is_unclear_or_unknown_is_refused"
    ],
    "a name with control characters": ["system/test_terminal.py::test_messages_are_clean"],
    "a device that is not here": [
        "system/test_device.py::test_a_device_that_is_not_here_is_refused_with_those_that_are"
    ],
    "images that cannot be decoded, links to pictures that are gone": [
        f"{LOADING}::test_bad_files_fail_or_are_skipped"
    ],
    "a source that is damaged, compressed, encrypted or no file": [
        f"{BAD_FILES}::test_a_bad_file_is_one_line_that_names_it",
        f"{BAD_FILES}::test_a_source_that_is_no_file_is_refused",
        "data/test_tars.py::test_a_damaged_archive_is_one_line_that_names_it",
    ],
    "links, devices, duplicate names, paths out of an archive": [
        "data/test_tars.py::test_what_should_not_be_there_is_an_image_that_cannot_be_used"
    ],
    "an image of more than 50 million pixels": [
        "data/test_decode.py::test_decompression_bombs_are_refused_before_they_are_decoded"
    ],
    "labels beyond the networks' classes, or none": [
        "test_bad_input.py::test_labels_beyond_the_networks_classes_are_refused",
        "test_bad_input.py::test_images_without_labels_are_refused_by_networks_with_classes",
    ],
    "hidden files, dead links to folders, unused splits": [f"{LOADING}::test_hidden_folders_are_not_read"],
    "captions whose columns name no image, images without a caption": [
        "pipelines/test_captions.py::test_columns_that_name_no_image_are_refused_by_name",
        "pipelines/test_captions.py::test_some_names_are_not_enough",
    ],
    "several captions of an image, captions of no image, empty ones": [
        "pipelines/test_captions.py::test_of_several_captions_the_first_is_taken_and_the_others_are_counted",
        "pipelines/test_captions.py::test_empty_captions_are_counted",
    ],
    "columns, arrays and files that are not read": [
        f"{LOADING}::test_arrays_that_may_be_labels_are_listed_and_one_is_named",
        f"{LOADING}::test_columns_beside_the_labels_are_named",
        f"{LOADING}::test_files_of_a_folder_that_are_no_images_are_counted",
    ],
    "two pictures of a pair with different aspect ratios": [
        "data/test_partners.py::test_two_of_another_aspect_ratio_are_refused_whatever_their_endings"
    ],
    "prepared images or latents are damaged on disk": [
        "data/test_cache.py::test_a_flipped_bit_is_found_before_anything_is_used",
        f"{PREPARE}::test_a_flipped_bit_is_found_and_that_shard_alone_made_again",
        "latents/test_encode.py::test_damage_is_found",
    ],
    "`data prepare` or `data encode` into a folder of something else": [
        f"{PREPARE}::test_a_folder_of_something_else_is_refused",
        "latents/test_encode.py::test_other_images_another_codec_and_other_settings_are_refused",
    ],
    "latents of another codec than the run's": [
        "latents/test_latent_run.py::test_what_does_not_belong_together_is_refused"
    ],
    "`--out` holds samples or a forecast of another model, plan or sampler": [
        "forecasts/test_forecast_command.py::test_starts_of_a_file_and_what_is_refused",
        f"{SAMPLES}::test_a_folder_of_other_samples_is_refused_and_what_differs_is_named",
    ],
    "a start of `forecast` in other units, or of other latitudes and longitudes, than the training data": [
        "forecasts/test_places.py::test_starts_of_other_places_and_units_are_refused_with_both",
        "forecasts/test_places.py::test_starts_of_the_same_place_are_taken_however_it_is_said",
    ],
    "a start of `forecast` without the units or coordinates that the training data has, or in another calendar": [
        "forecasts/test_places.py::test_a_start_that_does_not_say_what_its_run_says_is_noted_once",
        "forecasts/test_places.py::test_a_start_in_another_calendar_is_noted",
    ],
    "fields whose times are no numbers or dates, or not as many as the frames": [
        "forecasts/test_hdf5.py::test_times_of_hdf5_that_are_not_understood_are_refused",
        "forecasts/test_netcdf.py::test_times_of_netcdf_that_are_not_understood_are_refused",
    ],
    "a bit flips in `forecast.npy`": [
        "forecasts/test_rollout.py::test_a_flipped_bit_is_seen_and_drawn_again",
        "forecasts/test_rollout.py::test_other_files_of_a_forecast_are_written_anew",
    ],
    "a PNG in the folder is cut off": [f"{SAMPLES}::test_a_png_that_is_not_whole_is_drawn_again"],
    "a reference file of another number of features, with NaN, or a pickle": [
        "metrics/test_reference.py::test_wrong_statistics_are_refused_and_the_expected_extractor_named",
        "metrics/test_reference.py::test_pickles_are_never_opened",
    ],
    "weights of Inception or EfficientNet with another hash": [
        "metrics/test_inception.py::test_other_weights_are_refused_before_anything_opens_them",
        "metrics/test_efficientnet.py::test_other_weights_are_refused_unopened",
    ],
    "images without labels, and a feature network is needed": [
        "drawing/test_evaluator.py::test_images_without_labels_get_a_net_that_tells_how_they_are_turned"
    ],
    "a feature network that hardly beats a guess": [
        "drawing/test_evaluator.py::test_a_net_that_hardly_knows_its_classes_is_refused"
    ],
}


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_named_test_exists() -> None:
    named = {test for tests in HELD_BY.values() for test in tests}
    assert not [test for test in named if test.split("::")[1] not in functions(test.split("::")[0])]


def test_every_row_is_held_by_tests_and_has_an_exit_code() -> None:
    assert len(ROWS) > 40
    for row in ROWS:
        what, _, code = (cell.strip() for cell in row.strip("|").split("|"))
        assert HELD_BY[what], row
        assert re.search(r"\d", code), row
    assert len(HELD_BY) == len(ROWS)
