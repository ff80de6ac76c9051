"""What people do with LangChain: chains, streams, usage, many at once, errors."""

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import OpenAI

QUESTION = "What is prefill?"


def test_chain_of_prompt_model_and_parser(chat):
    prompt = ChatPromptTemplate([("system", "You are helpful."), ("user", "What is {term}?")])
    chain = prompt | chat() | StrOutputParser()
    assert "decode" in chain.invoke({"term": "decode"}).lower()


def test_stream_equals_the_whole(chat):
    assert "".join(chunk.text for chunk in chat().stream(QUESTION)) == chat().invoke(QUESTION).text


def test_usage_of_an_answer_and_of_a_stream(chat):
    whole = chat().invoke(QUESTION).usage_metadata
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    streamed = sum(chunks[1:], chunks[0]).usage_metadata
    assert whole["total_tokens"] == whole["input_tokens"] + whole["output_tokens"]
    assert streamed["output_tokens"] == whole["output_tokens"]
    assert streamed["input_tokens"] == whole["input_tokens"]


def test_finish_reason_and_model_name(chat, model):
    metadata = chat(max_tokens=3).invoke(QUESTION).response_metadata
    assert metadata["finish_reason"] == "length"
    assert metadata["model_name"] == model


def test_history(chat):
    messages = [SystemMessage("You are helpful."), HumanMessage(QUESTION)]
    messages.append(chat().invoke(messages))
    messages.append(HumanMessage("Tell me more."))
    assert isinstance(chat().invoke(messages), AIMessage)


def test_batch_keeps_the_order(chat):
    questions = ["What is prefill?", "What is decode?", "What is a lease?"]
    answers = chat().batch(questions)
    assert [a.text for a in answers] == [chat().invoke(q).text for q in questions]


async def test_asynchronous_stream(chat):
    chunks = [chunk.text async for chunk in chat().astream(QUESTION)]
    assert "".join(chunks) == chat().invoke(QUESTION).text


async def test_events_of_a_chain(chat):
    kinds = {event["event"] async for event in chat().astream_events(QUESTION, version="v2")}
    assert {"on_chat_model_start", "on_chat_model_stream", "on_chat_model_end"} <= kinds


def test_logprobs(chat):
    answer = chat(logprobs=True, top_logprobs=2, max_tokens=5).invoke(QUESTION)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answer.text


def test_several_choices(chat):
    result = chat(n=2, temperature=1, seed=1, max_tokens=8).generate([[HumanMessage(QUESTION)]])
    assert len(result.generations[0]) == 2
    assert result.llm_output["token_usage"]["completion_tokens"] <= 16


def test_stop(chat):
    full = chat().invoke(QUESTION).text
    assert chat().invoke(QUESTION, stop=[" the"]).text == full[: full.index(" the")]


def test_model_override_at_the_call(chat, model):
    answer = chat(model="gpt-absent").invoke("Hello", model=model)
    assert answer.response_metadata["model_name"] == model


def test_unknown_model(chat):
    with pytest.raises(openai.NotFoundError):
        chat(model="gpt-absent").invoke("Hello")


def test_too_long_a_prompt(chat):
    with pytest.raises(openai.BadRequestError) as caught:
        chat().invoke("prefill " * 20_000)
    assert caught.value.code == "context_length_exceeded"


def test_text_completion_model(base_url, model):
    llm = OpenAI(base_url=base_url, model=model, api_key="any", temperature=0, max_tokens=8)
    assert llm.invoke(QUESTION) == "".join(llm.stream(QUESTION))


def test_text_completion_model_takes_batches(base_url, model):
    llm = OpenAI(base_url=base_url, model=model, api_key="any", temperature=0, max_tokens=8)
    assert llm.batch(["A lease", "The router"]) == [llm.invoke("A lease"), llm.invoke("The router")]
