"""Rows of chat data in every format, and every way in which one can be wrong."""

from __future__ import annotations

from typing import Any

import pytest

from nld_train.data.chat.rows import conversation_of
from nld_train.errors import UserError

ASKED, ANSWERED = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def roles(row: dict[str, Any], chat_format: Any = "auto") -> list[tuple[str, Any, bool]]:
    """Role, text or tool calls, and whether it is learned, of each message."""
    return [
        (message.role, message.content.get("content", message.content.get("tool_calls")), message.is_answer)
        for message in conversation_of(row, chat_format, "row 7").messages
    ]


SYSTEM, USER, ASSISTANT = ("system", "s", False), ("user", "a", False), ("assistant", "b", True)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASKED, ANSWERED]}, [USER, ASSISTANT]),
        ({"messages": [{"role": "developer", "content": "s"}, ASKED, ANSWERED]}, [SYSTEM, USER, ASSISTANT]),
        ({"messages": [ASKED, ANSWERED | {"loss": 0}, ASKED, ANSWERED]},
         [USER, ("assistant", "b", False), USER, ASSISTANT]),
        ({"messages": [ASKED, ANSWERED | {"weight": 0.0}]}, [USER, ("assistant", "b", False)]),
        ({"messages": [ASKED | {"loss": 0}, ANSWERED | {"loss": True}]}, [USER, ASSISTANT]),
        ({"messages": [ASKED | {"content": [{"type": "text", "text": "a"}, {"text": ""}]}, ANSWERED]},
         [USER, ASSISTANT]),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
         [USER, ("assistant", [CALL], True)]),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": 1}'}]}]},
         [USER, ("assistant", [CALL], True)]),
        ({"messages": [{"role": "tool", "content": "a"}, ANSWERED]}, [("tool", "a", False), ASSISTANT]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
         [SYSTEM, USER, ASSISTANT]),
        ({"conversations": [ASKED, ANSWERED]}, [USER, ASSISTANT]),
        ({"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}, [USER, ASSISTANT]),
        ({"conversation": [{"from": "system", "value": "s"}, {"from": "user", "value": "a"},
                           {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                           {"from": "observation", "value": "1"}, {"from": "assistant", "value": "b"}]},
         [SYSTEM, USER, ("assistant", [CALL], True), ("tool", "1", False), ASSISTANT]),
        ({"instruction": "a", "output": "b"}, [USER, ASSISTANT]),
        ({"instruction": "i", "input": "x", "output": "b", "system": "s", "history": [["a", "b"]]},
         [SYSTEM, USER, ASSISTANT, ("user", "i\nx", False), ASSISTANT]),
        ({"prompt": "a", "completion": "b"}, [USER, ASSISTANT]),
        ({"prompt": [ASKED, ANSWERED, ASKED], "completion": [ANSWERED, ASKED, ANSWERED | {"loss": 0}]},
         [USER, ("assistant", "b", False), USER, ASSISTANT, USER, ("assistant", "b", False)]),
        ({"prompt": "p", "messages": [ASKED, ANSWERED]}, [USER, ASSISTANT]),
    ],
)  # fmt: skip
def test_each_format_is_recognised_by_its_keys(row: dict[str, Any], expected: list[Any]) -> None:
    assert roles(row) == expected


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_and_tools_reach_the_template(key: str) -> None:
    """Under the key that templates read, whatever release of transformers renders them."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = ANSWERED | {key: "hm", "name": None, "loss": 1}
    row = {"messages": [ASKED, answer], "tools": tools, "chat_template_kwargs": {"date": "today"}}
    conversation = conversation_of(row, "messages", "row 7")
    assert conversation.messages[1].content == ANSWERED | {key: "hm", "reasoning_content": "hm", "thinking": "hm"}
    assert conversation.tools == tools
    assert conversation.template_arguments == {"date": "today"}
    assert conversation.text == "a\nhm\nb"
    other = conversation_of({"messages": [{"role": "tool", "content": "a"}, answer]}, "auto", "row 7")
    assert other.key != conversation.key


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "row 7: holds a list, not an object with a conversation"),
        ({"text": "a"}, "row 7: holds no conversation (text); its keys must be one of: messages; conversations; "
                        "prompt and completion; instruction and output"),
        ({"messages": "a"}, "row 7: 'messages' is a text, not a list of messages"),
        ({"messages": {"role": ["user"], "content": []}}, "row 7: 'messages' is an object, not a list of messages"),
        ({"messages": []}, "row 7: the conversation has no messages"),
        ({"messages": [ASKED]}, "row 7: the conversation has no assistant turn"),
        ({"messages": [{"role": "system", "content": "s"}]}, "row 7: the conversation has no assistant turn"),
        ({"messages": [ASKED, "b"]}, "row 7: message 2 is a text, not an object with 'role' and 'content'"),
        ({"messages": [{"content": "a"}]}, "row 7: message 1 has no 'role' and no 'from' (content)"),
        ({"messages": [{"role": "critic", "content": "a"}]},
         'row 7: message 1 has the unknown role "critic": system, user, assistant and tool are known'),
        ({"messages": [{"role": None, "content": "a"}]}, "row 7: message 1 has the unknown role null: "),
        ({"messages": [{"role": ["user"], "content": "a"}]}, 'row 7: message 1 has the unknown role ["user"]: '),
        ({"messages": [{"role": "user"}]}, "row 7: message 1 (user) has no 'content'"),
        ({"messages": [{"role": "user", "content": 5}]}, "row 7: message 1 (user): 'content' is a number, not text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         'row 7: message 1 (user): a part of type image_url has no url'),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "row 7: message 1 (user): 'text' is null"),
        ({"messages": [ANSWERED | {"loss": 0.5}]}, "row 7: message 1 (assistant): 'loss' is 0.5; a message is lea"),
        ({"messages": [ASKED | {"weight": 1}]}, "row 7: message 1 (user): 'weight' is 1, but only assistant turns"),
        ({"messages": [ANSWERED | {"tool_calls": 3}]}, "row 7: message 1 (assistant): 'tool_calls' is a number, not a"),
        ({"messages": [ANSWERED | {"tool_calls": [{}]}]}, "row 7: message 1 (assistant): a tool call must be an obj"),
        ({"messages": [ANSWERED | {"tool_calls": [{"name": "f", "arguments": "{"}]}]},
         "row 7: message 1 (assistant): 'arguments' of the tool call 'f': not JSON"),
        ({"messages": [ANSWERED | {"reasoning_content": 1}]}, "row 7: message 1 (assistant): 'reasoning_content' is a"),
        ({"messages": [ANSWERED], "tools": 5}, "row 7: 'tools' is a number, not a list of JSON schemas"),
        ({"messages": [ANSWERED], "tools": "[1]"}, "row 7: 'tools' holds a number, not only JSON schemas"),
        ({"messages": [ANSWERED], "tools": "[1"}, "row 7: 'tools': not JSON"),
        ({"messages": [ANSWERED], "system": 1}, "row 7: 'system' is a number, not text"),
        ({"messages": [ANSWERED], "chat_template_kwargs": 1}, "row 7: 'chat_template_kwargs' is a number, not an obj"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, 'row 7: message 1 has the unknown role "narrator": '),
        ({"instruction": "a", "output": "b", "history": ["a"]}, "row 7: 'history' must be a list of pairs, a question"),
        ({"instruction": None, "output": "b"}, "row 7: 'instruction' is null, not text"),
        ({"prompt": 1, "completion": "b"}, "row 7: 'prompt' is a number, not a list of messages"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_line_with_the_row(row: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        roles(row)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_forced_format_is_the_one_that_is_read() -> None:
    row = {"messages": [ASKED, ANSWERED], "instruction": "i", "output": "b"}
    assert roles(row, "alpaca") == [("user", "i", False), ASSISTANT]
    with pytest.raises(UserError, match=r"^row 7: --chat-format sharegpt needs conversations \(messages, instruction"):
        roles(row, "sharegpt")
