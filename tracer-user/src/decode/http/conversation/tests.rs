//! Timelines of a keep-alive connection with calls taken out or cut.

use super::timeline::{
    LAST, SSE, Step, capped, chunk, events, json, of, plain, play, post, read, streamed, token, write,
};
use super::*;

// >A <head <a <a <done <0   >B ...   >C ...      one call is missing, with or without word of it
#[test]
fn a_call_that_is_missing_costs_no_other_exchange_anything() {
    let exchanges = [streamed("a"), plain("b"), streamed("c"), plain("d"), streamed("e")];
    for (touched, exchange) in exchanges.iter().enumerate() {
        for gone in 0..exchange.len() {
            for notice in 0..3 {
                let mut steps: Vec<Step> = Vec::new();
                let mut owed = None;
                for (i, exchange) in exchanges.iter().enumerate() {
                    for (k, step) in exchange.iter().enumerate() {
                        let Step::Call { direction, bytes, .. } = step else { panic!() };
                        if (i, k) == (touched, gone) {
                            owed =
                                [None, Some((*direction, None)), Some((*direction, Some(bytes.len() as u64)))][notice];
                            continue;
                        }
                        // A jump is seen with the next bytes of its direction.
                        if let Some((_, count)) = owed.take_if(|(lost, _)| *lost == *direction) {
                            steps.push(Step::Lost(*direction, count));
                        }
                        steps.push(step.clone());
                    }
                }
                let events = events(&steps);
                for (i, name) in ["a", "b", "c", "d", "e"].iter().enumerate() {
                    let ordinal = events.iter().find_map(|e| match &e.what {
                        What::RequestHead(h) if h.request_id.as_deref() == Some(name) => Some(e.request),
                        _ => None,
                    });
                    let said = ordinal.map(|ordinal| of(&events, ordinal)).unwrap_or_default();
                    let context =
                        format!("{name}, with call {gone} of {touched} gone, notice {notice}: {said}\n{events:?}");
                    if i == touched {
                        for other in ["a", "b", "c", "d", "e"].into_iter().filter(|other| other != name) {
                            let foreign = said.split(' ').any(|w| w == other || w == format!("end({other})"));
                            // Nothing but the id tells a lost response from a pipelined request.
                            assert!(!foreign, "{context}");
                        }
                    } else if i % 2 == 0 {
                        assert_eq!(said, format!("start@0 head asked 200 {name} {name} done end"), "{context}");
                    } else {
                        assert_eq!(said, format!("start@0 head asked 200 end({name})"), "{context}");
                    }
                }
            }
        }
    }
}

// >A <head <a <done (0 lost)   >B <head: ends A
#[test]
fn a_status_line_at_the_start_of_a_call_ends_the_response_before_it() {
    let mut steps = streamed("a");
    steps.pop();
    steps.extend(plain("b"));
    let events = events(&steps);
    assert_eq!(of(&events, 0), "start@0 head asked 200 a a done unseen");
    assert_eq!(of(&events, 1), "start@0 head asked 200 end(b)");
}

// >A  (all of A's response lost: word of it)  >B <head <body
#[test]
fn a_response_that_is_lost_whole_is_unseen_when_the_next_request_starts() {
    for count in [None, Some(500)] {
        let mut early = vec![read(post("a")), Step::Lost(Direction::Out, count)];
        early.extend(plain("b"));
        let mut late = vec![read(post("a")), read(post("b")), Step::Lost(Direction::Out, count)];
        late.extend_from_slice(&plain("b")[1..]);
        for steps in [early, late] {
            let events = events(&steps);
            assert_eq!(of(&events, 0), "start@0 head asked unseen");
            assert_eq!(of(&events, 1), "start@0 head asked 200 end(b)");
        }
    }
}

// >A  (response lost, no word)  >B <head <b: the id shows that it is B's
#[test]
fn a_binding_is_corrected_when_the_id_shows_whose_the_response_is() {
    let mut conversation = Conversation::default();
    play(&mut conversation, &[read(post("a")), read(post("b")), write(SSE), write(token("b"))]);
    let mut out = Vec::new();
    assert!(conversation.rebind(0, 1, &mut |e| out.push(e)));
    out.extend(play(&mut conversation, &[write(token("b")), write(LAST)]));
    assert_eq!((of(&out, 0), of(&out, 1)), ("unseen".into(), "b end".into()));
    assert_eq!((conversation.pending().count(), conversation.resyncs()), (0, 1));
    assert!(!conversation.rebind(1, 2, &mut |_| {}));

    // The id of a body is known at its end.
    let mut conversation = Conversation::default();
    let [head, body] = json("b");
    play(&mut conversation, &[read(post("a")), read(post("b")), write(head), write(body)]);
    assert!(conversation.rebind(0, 1, &mut |_| {}));
    let events = play(&mut conversation, &plain("c"));
    assert_eq!(of(&events, 2), "start@0 head asked 200 end(c)");
}

// >A <head <a   >B   <a <0   <head <b
#[test]
fn a_request_that_comes_while_an_undisturbed_response_is_streamed_is_pipelined() {
    let [head, body] = json("b");
    let steps = [
        read(post("a")),
        write(SSE),
        write(token("a")),
        read(post("b")),
        write(token("a")),
        write(LAST),
        write(head),
        write(body),
    ];
    let events = events(&steps);
    assert_eq!(of(&events, 0), "start@0 head asked 200 a a end");
    assert_eq!(of(&events, 1), "start@0 head asked 200 end(b)");
}

#[test]
fn pipelined_exchanges_are_the_same_wherever_the_bytes_are_cut() {
    let requests = [post("a"), "\r\n".into(), post("b")].concat();
    let [head, body] = json("b");
    let responses = [SSE, &token("a"), &chunk("[DONE]"), LAST, "HTTP/1.1 100 Continue\r\n\r\n", &head, &body].concat();
    for cut in 1..requests.len() {
        let (x, y) = requests.split_at(cut);
        let events = events(&[read(x), read(y), write(&responses)]);
        assert_eq!(of(&events, 0), "start@0 head asked 200 a done end", "cut at {cut}");
        assert!(of(&events, 1).ends_with("head asked 200 end(b)"), "cut at {cut}");
    }
    for cut in 1..responses.len() {
        let (x, y) = responses.split_at(cut);
        let events = events(&[read(&requests), write(x), write(y)]);
        assert_eq!(of(&events, 0), "start@0 head asked 200 a done end", "cut at {cut}");
        assert_eq!(of(&events, 1), "start@1 head asked 200 end(b)", "cut at {cut}");
    }
}

// >A (half its body lost, no word)  <413 <end   >B
#[test]
fn a_request_of_which_body_is_missing_is_over_with_its_response() {
    let whole = post("a");
    for answer in
        [vec![write("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")], vec![write(SSE), write(token("a"))]]
    {
        let mut steps = vec![read(&whole[..whole.len() - 20])];
        steps.extend(answer);
        steps.extend(plain("b"));
        let events = events(&steps);
        assert!(of(&events, 0).contains("gap-in asked?"), "{}", of(&events, 0));
        assert_eq!(of(&events, 1), "start@0 head asked 200 end(b)");
    }
}

// >A: body... | POST /x HTTP/1.1 ...      a read that happens to start like a request
#[test]
fn a_body_that_looks_like_a_request_is_not_split_when_nothing_is_missing() {
    let head = "POST /v1/completions HTTP/1.1\r\nContent-Length: 60\r\n\r\n";
    let first = read([head, "{\"prompt\":\"\r\n"].concat());
    let second = read(format!("{:47}", "POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\n"));
    assert_eq!(of(&events(&[first.clone(), second]), 1), "");
    // An early answer: the bytes of the body that still come are no request.
    let early = write("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}");
    let events = events(&[first, early, read("POST it to me, "), read(post("b"))]);
    assert_eq!(of(&events, 1), "start@0 head asked");
}

// >A  (head lost) <a <a <0   >B <head <body
#[test]
fn a_response_without_head_is_marked_and_does_not_take_the_next_one() {
    let mut steps = streamed("a");
    steps.remove(1);
    steps.extend(plain("b"));
    let told = events(&steps);
    assert_eq!(of(&told, 0), "start@0 head asked gap-out unseen");
    assert_eq!(of(&told, 1), "start@0 head asked 200 end(b)");
}

// attach here: <x <x   >A   <0   <head <body
#[test]
fn a_response_that_nobody_was_seen_to_ask_for_has_no_owner() {
    let [head, body] = json("a");
    let steps =
        [write(SSE), write(token("x")), read(post("a")), write(token("x")), write(LAST), write(head), write(body)];
    assert_eq!(of(&events(&steps), 0), "start@0 head asked 200 end(a)");
}

// writev: 3c..data..3c..data..(cap)~~~~~~..usage..0
#[test]
fn chunks_coalesced_in_a_capped_call_are_taken_up_in_its_tail() {
    let usage = chunk(r#"{"id":"a","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#);
    let coalesced = [&*token("a").repeat(10), &usage, &chunk("[DONE]"), LAST].concat();
    for tail in [0, usage.len() + 30, usage.len() + 90] {
        let mut steps = vec![read(post("a")), write(SSE)];
        steps.extend(capped(write(&coalesced), 80, tail));
        steps.extend(plain("b"));
        let events = events(&steps);
        let said = of(&events, 0);
        assert_eq!(of(&events, 1), "start@0 head asked 200 end(b)");
        assert!(said.contains("gap-out"), "{said}");
        assert!(said.ends_with(if tail == 0 { "unseen" } else { "done end" }), "tail {tail}: {said}");
        let tokens = events.iter().find_map(|e| match &e.what {
            What::Chunk(f) => f.completion_tokens,
            _ => None,
        });
        assert_eq!(tokens, (tail > 0).then_some(5));
    }
}

#[test]
fn a_capped_body_of_known_length_ends_exactly_and_its_ends_are_read() {
    let [head, body] = json("a");
    let request = post("a");
    let mut steps = capped(read(&request), request.len() - 40, 24);
    steps.push(write(head));
    steps.extend(capped(write(&body), 40, 40));
    let events = events(&steps);
    assert_eq!(of(&events, 0), "start@0 head gap-in asked? 200 gap-out end(a)");
    assert!(events.iter().any(|e| matches!(&e.what, What::Complete(Some(f)) if f.prompt_tokens == Some(3))));
    assert!(events.iter().any(|e| matches!(&e.what, What::RequestComplete(f) if f.stream == Some(true))));
}

#[test]
fn answers_without_body_and_other_protocols() {
    let head = "HEAD /x HTTP/1.1\r\n\r\n";
    let told = events(&[
        read(head),
        write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"),
        read(post("b")),
        write("HTTP/1.1 204 No\r\n\r\n"),
    ]);
    assert_eq!(of(&told, 0), "start@0 head asked 200 end");
    assert_eq!(of(&told, 1), "start@0 head asked 204 end");
    for (request, status) in [("CONNECT a:1 HTTP/1.1\r\n\r\n", "200"), ("GET /ws HTTP/1.1\r\n\r\n", "101")] {
        let mut conversation = Conversation::default();
        let steps = [read(request), write(format!("HTTP/1.1 {status} X\r\n\r\n")), read(post("b"))];
        let told = play(&mut conversation, &steps);
        assert_eq!(of(&told, 0), format!("start@0 head asked {status} end"));
        assert!(conversation.is_foreign() && of(&told, 1).is_empty());
    }
}

#[test]
fn a_close_ends_a_body_that_runs_until_it_and_gives_up_what_is_in_doubt() {
    let told = events(&[read(post("a")), write("HTTP/1.1 200 OK\r\n\r\n{\"id\":\"a\"}"), Step::Closed]);
    assert_eq!(of(&told, 0), "start@0 head asked 200 end(a)");
    let told = events(&[read(post("a")), write(SSE), Step::Lost(Direction::Out, None), Step::Closed]);
    assert_eq!(of(&told, 0), "start@0 head asked 200 gap-out unseen");
}

#[test]
fn garbage_costs_bounded_memory_and_no_panic() {
    let words: [&[u8]; 12] = [
        b"POST /v1/completions HTTP/1.1\r\n",
        b"content-length: 30\r\n",
        b"transfer-encoding: chunked\r\n",
        b"\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"content-type: text/event-stream\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"data: {\"id\":",
        b"\xff\x00{[\"\\",
        b"ffffffffffff\r\n",
        b"GET ",
    ];
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let mut conversation = Conversation::default();
        for _ in 0..100 {
            let direction = if random(2) == 0 { Direction::In } else { Direction::Out };
            let bytes: Vec<u8> = (0..random(6)).flat_map(|_| words[random(12) as usize].to_vec()).collect();
            let len = bytes.len() as u64 + if random(4) == 0 { random(40) } else { 0 };
            conversation.push(direction, Piece { len, bytes: &bytes, starts: random(5) > 0 }, &mut |_| {});
            if random(9) == 0 {
                conversation.lost(direction, [None, Some(random(99))][random(2) as usize], &mut |_| {});
            }
            let next = conversation.next;
            if random(30) == 0 {
                conversation.rebind(random(next + 1), random(next + 1), &mut |_| {});
            }
            assert!(conversation.held_bytes() < 256 * 1024);
        }
        conversation.closed(&mut |_| {});
    }
    let mut conversation = Conversation::default();
    for _ in 0..3_000 {
        play(&mut conversation, &[read("GET /health HTTP/1.1\r\n\r\n")]);
    }
    assert_eq!(conversation.pending().count(), MAX_OPEN);
}
