"""Prints a script that lets a shell complete verbs, options, shipped sweeps and names of settings.

python -m orchestrator.completion bash | zsh | fish
"""

import shlex
import sys

from orchestrator import parsers
from orchestrator.config.reference import setting_names
from trainables.command_line import steady_output
from trainables.shown_commands import SCRIPT, shipped

WITH_SETTINGS = ("sweep", "ablate", "doctor", "resume", "features", "to-parquet")
"""The verbs that take changes of settings, with the names that a sweep's file has."""
BASH = """\
# Completion of {script}. Source this file from ~/.bashrc.
_{script}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]}} words
    if [ "$COMP_CWORD" = 1 ]; then
        words={verbs}
    else
        case $verb in
{cases}
        esac
    fi
    case $word in
        *=*) COMPREPLY=() ;;
        *) COMPREPLY=($(compgen -W "$words" -- "$word"))
           case ${{COMPREPLY[0]}} in *=) compopt -o nospace ;; esac
           [ ${{#COMPREPLY[@]}} = 0 ] && compopt -o default ;;
    esac
}}
complete -o default -F _{script} {script}
"""
ZSH = """\
# Completion of {script}. Source this file from ~/.zshrc.
_{script}() {{
    local -a offered
    if (( CURRENT == 2 )); then
        compadd -- {verbs}
        return
    fi
    case $words[2] in
{cases}
    esac
    compadd -S '' -- ${{(M)offered:#*=}} && return
    compadd -- ${{offered:#*=}} || _files
}}
(( $+functions[compdef] )) || {{ autoload -U compinit && compinit }}
compdef _{script} {script}
"""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    with steady_output():
        shell = parsers.completion().parse_args(arguments).shell
        print({"bash": bash, "zsh": zsh, "fish": fish}[shell](), end="")
    return 0


def words_of(verb: str) -> list[str]:
    """What may come after a verb, besides files and values."""
    words = parsers.VERBS[verb].parser().options()
    if verb in ("sweep", "doctor", "train", "features", "to-parquet"):
        words += [name for name in shipped() if not name.startswith("ablation_")]
    if verb == "ablate":
        words += [name for name in shipped() if name.startswith("ablation_")]
    names = sorted(name for name in setting_names() if "<" not in name)
    if verb in WITH_SETTINGS:
        words += [f"{name}=" for name in names]
    elif verb == "train":
        words += [f"{name.removeprefix('trial.')}=" for name in names if name.startswith("trial.")]
    elif verb == "settings":
        words += names
    return words


def bash() -> str:
    """The script for bash."""
    cases = [f"            {verb}) words={shlex.quote(' '.join(words_of(verb)))} ;;" for verb in parsers.VERBS]
    return BASH.format(script=SCRIPT, verbs=shlex.quote(" ".join(parsers.VERBS)), cases="\n".join(cases))


def zsh() -> str:
    """The script for zsh."""
    cases = [f"        {verb}) offered=({shlex.join(words_of(verb))}) ;;" for verb in parsers.VERBS]
    return ZSH.format(script=SCRIPT, verbs=" ".join(parsers.VERBS), cases="\n".join(cases))


def fish() -> str:
    """The script for fish."""
    lines = [
        f"# Completion of {SCRIPT}.",
        f"complete -c {SCRIPT} -n __fish_use_subcommand -f -a {shlex.quote(' '.join(parsers.VERBS))}",
    ]
    for verb in parsers.VERBS:
        condition = shlex.quote(f"__fish_seen_subcommand_from {verb}")
        lines.append(f"complete -c {SCRIPT} -n {condition} -a {shlex.quote(' '.join(words_of(verb)))}")
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
