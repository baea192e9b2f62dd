import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.util.ArrayList;
import java.util.List;
import models.JobEvent;
import models.OtpJob;
import models.Outcome;
import models.Priority;

/** Reads [{"schema", "payload"}, …] and writes the payloads, each through its model. */
public class RoundTrip {
  public static void main(String[] args) throws Exception {
    ObjectMapper mapper = new ObjectMapper();
    List<Object> payloads = new ArrayList<>();
    for (JsonNode example : mapper.readTree(System.in)) {
      Class<?> model = Class.forName("models." + example.get("schema").asText());
      payloads.add(mapper.treeToValue(example.get("payload"), model));
    }
    mapper.writeValue(System.out, payloads);
  }

  static long types(OtpJob job, JobEvent event) {
    String tenant = job.getMetadata().getTenant();
    String place = job.getMetadata().getRequest().getPlace();
    Double minutes = job.getMetadata().getExpiryMinutes();
    Priority priority = job.getPriority();
    Outcome outcome = event.getOutcome();
    Long made = job.getTimestamp(), retry = event.getRetryAt(), allowed = event.getAllowedAt();
    return event.getAt();
  }
}
