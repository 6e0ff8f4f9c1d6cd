package main

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/magnetar-io/magnetar/client"
)

// printer turns a message into the bytes to print for it.
type printer func(dst []byte, m *client.Received) []byte

// messageView is a message as JSON.
type messageView struct {
	Topic        string            `json:"topic"`
	Partition    int32             `json:"partition"`
	MessageID    string            `json:"messageId"`
	Key          string            `json:"key,omitempty"`
	Value        any               `json:"value"` // text, or base64 under "valueBase64" where it is none
	ValueBase64  []byte            `json:"valueBase64,omitempty"`
	Properties   map[string]string `json:"properties,omitempty"`
	Producer     string            `json:"producerName,omitempty"`
	PublishTime  string            `json:"publishTime"`
	EventTime    string            `json:"eventTime,omitempty"`
	Redeliveries int               `json:"redeliveryCount"`
}

func viewMessage(m *client.Received) messageView {
	v := messageView{
		Topic: m.Topic, Partition: m.ID.Partition, MessageID: m.ID.String(), Key: m.Key, Properties: m.Properties,
		Producer: m.Producer, PublishTime: timeText(m.PublishTime.UnixMilli()), Redeliveries: m.Redeliveries,
	}
	if !m.EventTime.IsZero() {
		v.EventTime = m.EventTime.UTC().Format(time.RFC3339Nano)
	}
	if text := string(m.Value); strings.ToValidUTF8(text, "") == text {
		v.Value = text
	} else {
		v.ValueBase64 = m.Value
	}
	return v
}

func printRaw(dst []byte, m *client.Received) []byte { return append(append(dst, m.Value...), '\n') }

// printJSON prints one object a line.
func printJSON(dst []byte, m *client.Received) []byte {
	text, err := json.Marshal(viewMessage(m))
	if err != nil { // a struct of texts and numbers always encodes
		panic(err)
	}
	return append(append(dst, text...), '\n')
}

// parseFormat reads a format such as '%k\t%v\n':
//
//	%t topic   %p partition   %i message id   %k key   %v value
//	%s bytes of the value   %T publish time   %h properties   %% a percent sign
func parseFormat(format string) (printer, error) {
	var steps []printer
	literal := func(s string) {
		steps = append(steps, func(dst []byte, _ *client.Received) []byte { return append(dst, s...) })
	}
	for i := 0; i < len(format); i++ {
		c := format[i]
		if c != '%' && c != '\\' || i+1 == len(format) {
			literal(string(c))
			continue
		}
		i++
		verb := string(c) + format[i:i+1]
		step, ok := verbs[verb]
		if !ok {
			return nil, fmt.Errorf("format %q: %q is unknown; there are %%t %%p %%i %%k %%v %%s %%T %%h %%%% \\n \\t \\\\", format, verb)
		}
		steps = append(steps, step)
	}
	return func(dst []byte, m *client.Received) []byte {
		for _, s := range steps {
			dst = s(dst, m)
		}
		return dst
	}, nil
}

var verbs = map[string]printer{
	"%t": func(d []byte, m *client.Received) []byte { return append(d, m.Topic...) },
	"%p": func(d []byte, m *client.Received) []byte { return strconv.AppendInt(d, int64(m.ID.Partition), 10) },
	"%i": func(d []byte, m *client.Received) []byte { return append(d, m.ID.String()...) },
	"%k": func(d []byte, m *client.Received) []byte { return append(d, m.Key...) },
	"%v": func(d []byte, m *client.Received) []byte { return append(d, m.Value...) },
	"%s": func(d []byte, m *client.Received) []byte { return strconv.AppendInt(d, int64(len(m.Value)), 10) },
	"%T": func(d []byte, m *client.Received) []byte { return append(d, timeText(m.PublishTime.UnixMilli())...) },
	"%h": func(d []byte, m *client.Received) []byte {
		var parts []string
		for k, v := range m.Properties {
			parts = append(parts, k+"="+v)
		}
		sort.Strings(parts)
		return append(d, strings.Join(parts, ",")...)
	},
	"%%":      func(d []byte, _ *client.Received) []byte { return append(d, '%') },
	`\n`:      func(d []byte, _ *client.Received) []byte { return append(d, '\n') },
	`\t`:      func(d []byte, _ *client.Received) []byte { return append(d, '\t') },
	`\` + `\`: func(d []byte, _ *client.Received) []byte { return append(d, '\\') },
}
