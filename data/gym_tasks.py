"""Which reasoning-gym tasks may be trained on: a review of every scorer in reasoning-gym 0.1.25, read one by one.

A scorer gets text that the model wrote, so a task is accepted only when no code path from `score_answer` (base class
and helpers included) evaluates, imports, opens or starts anything, no answer makes it run away, and its own gold answer
scores 1.0 after the item went through JSON. tests/data/test_data_gym_review.py repeats the review on the installed
version: it walks the reachable source, and scores hostile answers under an audit hook.
"""

from __future__ import annotations

REFUSED_GROUPS: dict[str, tuple[str, ...]] = {
    "its scorer hands the answer to eval": ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
    "its scorer hands the answer to sympy's parse_expr, which is eval": (
        "countdown",
        "intermediate_integration",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
    ),
    "its scorer evaluates text of the item": ("bitwise_arithmetic", "number_sorting"),
    "its generator executes a downloaded corpus of programs": ("codeio",),
    "it hands over to other tasks, which are chosen by its settings": ("composite",),
    "a short answer keeps its scorer busy for hours or fills the memory (1e999999999, A+99999999999, 2**variables)": (
        "coin_flip",
        "propositional_logic",
        "rubiks_cube",
        "rush_hour",
    ),
    "its scorer pays 1.0 for answers that are not right (`nan`; any text at all)": (
        "complex_arithmetic",
        "game_of_life_halting",
    ),
    "its items have no gold answer": ("boxnet", "graph_color"),
    "its scorer compares tuples, which JSON turns into lists": ("arc_agi", "rearc"),
    "its items depend on Python's hash seed, so a resumed run would see others": (
        "isomorphic_strings",
        "knight_swap",
        "list_functions",
        "ransom_note",
        "word_ladder",
    ),
    "its scorer prints, or warns on the terminal about, what the model wrote": ("pool_matrix", "tower_of_hanoi"),
}

REFUSED_TASKS: dict[str, str] = {task: reason for reason, tasks in REFUSED_GROUPS.items() for task in tasks}

# Scored by ProceduralDataset.score_answer: string equality, or the share of the answer that the gold makes up.
_STRING_COMPARISON = """
acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation caesar_cipher count_bits count_primes
course_schedule gcd largest_island lcm leg_counting letter_counting mahjong_puzzle maze modulo_grid number_filtering
number_sequence rotate_matrix rotten_oranges simple_equations simple_geometry string_manipulation string_splitting
string_synthesis syllogism word_sequence_reversal
"""

# Scorers of their own: int, float, Decimal, json.loads, regular expressions, simulated moves.
_OWN_SCORER = """
ab advanced_geometry calendar_arithmetic chain_sum circuit_logic color_cube_rotation cryptarithm decimal_arithmetic
decimal_chain_sum dice emoji_mystery family_relationships figlet_font fraction_simplification futoshiki game_of_life
group_anagrams gsm_symbolic jugs kakurasu knights_knaves letter_jumble manipulate_matrix mini_sudoku
needle_haystack number_format palindrome_generation palindrome_partitioning path_star polynomial_equations
power_function prime_factorization products quantum_lock rectangle_count self_reference sentence_reordering
shortest_path sokoban spell_backward sudoku survo time_intervals tsumego word_sorting zebra_puzzles
"""

REVIEWED_TASKS: frozenset[str] = frozenset((_STRING_COMPARISON + _OWN_SCORER).split())
