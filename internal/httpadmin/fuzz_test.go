package httpadmin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzRequest shows that every request is answered with an object in JSON, and none
// with an error of ours.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/api/v1/ledgers", "topic=t&after=6&limit=2", "")
	f.Add("GET", "/api/v1/ledgers", "after=-1&limit=99999999999&%zz", "")
	f.Add("POST", "/api/v1/topic/t/n/orders", "", `{"partitions": 4}`)
	f.Add("POST", "/api/v1/topic/t/n/orders", "", `{"partitions": 1e99, "topic": {}}`)
	f.Add("DELETE", "/api/v1/topic/t/n/a%2Fb", "", strings.Repeat("[", 10_000))
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		b := &fake{topics: map[string]uint32{}}
		h := New(Services{Admin: b, Discovery: b})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var out map[string]any
		if w.Code != http.StatusMovedPermanently && w.Code != http.StatusTemporaryRedirect && json.Unmarshal(w.Body.Bytes(), &out) != nil || w.Code == http.StatusInternalServerError {
			t.Fatalf("%d %q", w.Code, w.Body)
		}
	})
}
