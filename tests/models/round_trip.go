package main

import (
	"encoding/json"
	"os"

	"roundtrip/models"
)

// Reads [{"schema", "payload"}, …] and writes the payloads, each through its model.
func main() {
	var examples []struct {
		Schema  string
		Payload json.RawMessage
	}
	check(json.NewDecoder(os.Stdin).Decode(&examples))
	payloads := []any{}
	for _, example := range examples {
		payload := map[string]any{
			"ErasedBody": &models.ErasedBody{}, "JobEvent": &models.JobEvent{}, "OtpJob": &models.OtpJob{},
		}[example.Schema]
		check(json.Unmarshal(example.Payload, payload))
		payloads = append(payloads, payload)
	}
	check(json.NewEncoder(os.Stdout).Encode(payloads))
}

func types(job models.OtpJob, event models.JobEvent) (at int) {
	var _ string = job.Metadata.Tenant
	var _ string = job.Metadata.Request.Place
	var _ float64 = job.Metadata.ExpiryMinutes
	var _ *models.Priority = job.Priority
	var _ *models.Outcome = event.Outcome
	return event.At
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
