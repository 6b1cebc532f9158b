"""Which cases `make test` leaves to `make test-all`, besides tests that are marked slow.

`make test` has a few minutes. It runs each of these tests too, with some of its cases; the others show the same
property of further runtimes, networks or numbers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

WHOLE_SUITE = 3000  # tests; of fewer not every case is expected to be there
OTHER_RUNTIMES = r"test_runtimes\.py::Test(?:OpenVino|LiteRt|ExecuTorch)::test_"
CASES = (  # searched in the names of tests
    rf"{OTHER_RUNTIMES}files_of_two_axes_compute\w+\[.*-(?!Residual)\w+\]",
    rf"{OTHER_RUNTIMES}layers_are_packed_at_the_declared_precisions\[(?!Linear|Conv2d-1\b)",
    r"TestOpenVino::test_layers_are_packed_at_the_declared_precisions\[",
    r"TestLiteRt::test_layers_are_packed_at_the_declared_precisions\[Linear",
    r"TestExecuTorch::test_files_of_two_axes_compute\w+\[(?!channels-bits)",
    r"test_python_interface\.py::test_the_command_line_is_safe_in_the_same_way\[1",
    rf"{OTHER_RUNTIMES}the_size_of_a_file_is_predicted\[(?!\(\((?:32, 32|8, 8)\),\))",
    rf"{OTHER_RUNTIMES}rounded_layers_are_right\w+\[(?!first second third)",
    rf"{OTHER_RUNTIMES}a_file_contains_nothing_of_removed_branches\[(?!channels)",
    rf"{OTHER_RUNTIMES}layers_with_equal_codes_are_both_stored\[(?!4)",
    r"Test(?:OpenVino|ExecuTorch)::test_attention_layers",
    r"test_ends\.py::test_files_take_and_give\w+\[(?!floats-uint8.*-(?!executorch)|integers-int8-litert|integers-float32-onnx)",
    r"test_ends\.py::test_a_file_takes_what_a_camera_gives\[(?!onnx)",
    r"test_ends\.py::test_images_of_a_sensor_keep_their_order\[(?!\[\]-onnx|.*io.*litert)",
    r"test_ends\.py::test_log_mel_features_are_computed_in_the_file\[(?!onnx|litert)",
    r"test_page\.py::test_a_page_is_legible\w+\[(?!verified-1400-dark|layers_54-390-light|four_objectives-1400-light)",
    r"test_resolution\.py::test_files_resize_as_torch_does\[(?!8-onnx)",
    r"test_flat\.py::test_files_take_and_return_all_tensors\[(?:.*-openvino|(?!two inputs to a d|tokens).*)\]",
    r"test_encoders\.py::test_channels_of_an_encoder\w+\[(?!bert-sdpa|vit-eager|swin-sdpa|whisper-eager)",
    r"test_any_model\.py::test_the_file_has_the_same_outputs\w+\[(?!Classic|Mobile|Reused|UNet)",
    r"test_any_model\.py::test_a_study_trains_every_head\w+\[(?!Auxiliary)",
    r"::test_it_combines_with_the_other_axes\[(?!Plain|Residual|Separable|Inverted|Grouped|SqueezeExcite)",
    r"::test_costs_of_random_plans_of_all_axes\w+\[(?!Plain|Residual|Separable|Inverted|Grouped|Dense)",
    r"test_size\.py::test_the_predicted_size_is_that_of_the_file\[small",
    r"test_scale_free\.py::test_other_units_give_the_same_plans\[(?!losses of|costs in a small)",
    r"test_recurrent\.py::test_other_runtimes_execute_recurrent_layers\[(?!litert-LSTM)",
    r"test_recurrent\.py::test_an_onnx_file_has_the_operator\w+\[(?!LSTM bi)",
    r"test_onnx_runtime\.py::test_a_chain_of_quantized_layers\w+\[(?!0-4|1-8|0-8)",
    r"test_onnx_runtime\.py::test_the_outputs_of_other_layers_agree\[False",
    r"test_lost_database\.py::test_an_operation_counts_once\w+\[request",
    r"test_deploy\.py::test_transposed_convolutions\w+\[(?!Uniform\(\)-8|KMeans\(sample=8192\)-32-2)",
    r"test_deploy\.py::test_parts_of_grouped_layers\w+\[(?!Grouped-grouped-Tucker|Separable-depthwise-Svd)",
    r"test_band_search\.py::test_every_band_of_every_cost\w+\[(?!Dense|Residual|Separable|VisionTransformer|Plain)",
    r"test_trust\.py::test_every_candidate_measures_what_was_recorded\w+\[[12]\]",
    r"test_quick_database\.py::test_mixed_trials\w+\[\w+-0",
    r"test_structures\.py::test_a_study_of_any_structure\w+\[(?!tokens)",
    r"test_tasks\.py::test_a_study_of_another_task\w+\[(?!segmentation)",
    r"test_terminal\.py::test_the_example_of_the_help_runs\w+\[(?!front|export)",
    r"test_terminal\.py::test_standard_output_is_one_json_document\[words[02345]",
    r"test_model_card\.py::test_the_lines_for_python_load_the_file\[(?!onnx)",
    r"test_tried_precisions\.py::test_what_fails_is_found_and_not_offered\[(?!Picky\(threads=1, layers=\('first')",
    r"test_optuna_natives\.py::test_the_dashboard_shows_feasibility\w+\[postgresql",
    r"test_fuzz\.py::test_bad_input_ends_with_one_line\[(?:stored files|studies)",
    r"test_architectures\.py::test_costs_are_predicted_exactly\[decomposition[12]",
    r"test_latency_model\.py::test_invalid_costs_are_ignored\[(?!nan)",
    r"TestExecuTorch::test_a_smaller_file_has_the_same_outputs\[(?!Residual)",
    r"test_tflite_micro\.py::test_a_file_of_any_precision\w+\[(?!\(8, 8\)|\(4, 8\)|\(32, 32\))",
    r"test_loops\.py::test_the_steps_of_integers\w+\[(?!GRU)",
    r"test_loops\.py::test_(?:a_network_of_floats|last_states)\w+\[LSTM",
    r"test_tflite_micro\.py::test_many_tensors_are_joined_in_parts\[\(32",
    r"test_memory_layout\.py::test_weights_of_channels_last\[(?!onnx|executorch-8)",
    r"test_memory_layout\.py::test_images_of_any_layout\[(?!permuted-executorch|expanded-onnx)",
    r"test_resolution\.py::test_costs_are_exact_at_every_size_with_all_axes\[[12]-",
    r"test_onnx_runtime\.py::test_weights_are_packed_to\w+\[[3567]\]",
    r"TestOnnxRuntime::test_layers_are_packed\w+\[(?!Linear|Conv2d-1\b)",
    r"TestOnnxRuntime::test_files_of_two_axes\w+\[.*-(?:Mlp|Plain)\]",
    r"test_signatures\.py::test_an_exported_file_is_verified_at_every_size\[executorch",
    r"test_signatures\.py::test_entry_points_share_weights\w+\[(?!litert-4)",
    r"test_ends\.py::test_what_cannot_be_is_one_line\[words[12]",
    r"test_ends\.py::test_a_preprocessing_that_cannot_be_a_part\w+\[(?!InPlace)",
    r"test_full_disk\.py::test_with_space_the_same_command_goes_on\[sqlite",
    r"test_separate_padding\.py::test_an_export_is_rebuilt\w+\[version",
    r"test_normalizing\.py::test_a_faulty_test_split_is_reported\w+\[(?!shape)",
    r"test_comparison\.py::test_a_file_of_a_network_for_images\w+\[executorch",
    r"test_decisions\.py::test_files_take_networks_that_normalize\w+\[.*-executorch",
    r"test_bad_numbers\.py::test_a_study_with_numbers_that_are_not_finite\w+\[NaN in test",
    r"test_trust\.py::test_a_teacher_whose_forward_was_edited\w+\[(?!a norm|permuted)",
    r"test_trust\.py::test_a_damaged_verification_record\w+\[(?!changed)",
    r"test_cli\.py::test_a_damaged_journal_is_mended\w+\[(?!a line)",
    r"test_cli\.py::test_a_sampler_can_be_chosen_by_name\[(?!tpe)",
    r"test_versions\.py::test_a_file_says_the_oldest_version\w+\[LiteRt.*(?:\(8, 8\)|2\.1)",
    r"test_resolution\.py::test_a_member_is_shown_exported\w+\[outside",
    r"test_any_model\.py::test_predicted_sizes_include\w+\[Vision",
)


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark these cases slow.

    Raises
    ------
    pytest.UsageError
        If the whole suite has no case that a pattern describes.
    """
    found = dict.fromkeys(CASES, 0)
    for item in items:
        for pattern in CASES:
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.slow)
                found[pattern] += 1
                break
    unused = [pattern for pattern, count in found.items() if not count]
    if unused and len(items) > WHOLE_SUITE:
        raise pytest.UsageError(f"no test is described by these patterns of {__name__}: {unused}")
